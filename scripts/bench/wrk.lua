-- Prints the figures of a wrk run as one line of JSON: times in microseconds, no unit to parse.
function done(summary, latency, requests)
    local e = summary.errors
    io.write(string.format(
        '{"requests":%d,"rps":%.1f,"p50":%.0f,"p99":%.0f,"bad":%d,"socket":%d}\n',
        summary.requests, summary.requests / (summary.duration / 1e6),
        latency:percentile(50), latency:percentile(99),
        e.status, e.connect + e.read + e.write + e.timeout))
end
