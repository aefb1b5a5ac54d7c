-- POSTs the body of the file in BODY; with TOKENS (a file, a line each) in turns for each of these callers, each under a key of
-- its own. Prints what wrk.lua prints.
dofile(os.getenv("WRK_LUA"))

local body = io.open(os.getenv("BODY")):read("*a")
local tokens, sent = {}, 0
if os.getenv("TOKENS") then
    for token in io.lines(os.getenv("TOKENS")) do tokens[#tokens + 1] = "Bearer " .. token end
end
math.randomseed(os.time())
local run = string.format("%d-%d", os.time(), math.random(1000000))

function init()
    wrk.method, wrk.body = "POST", body
    wrk.headers["Content-Type"] = "application/json"
end

if #tokens > 0 then
    function request()
        sent = sent + 1
        wrk.headers["Idempotency-Key"] = run .. "-" .. sent
        wrk.headers["Authorization"] = tokens[sent % #tokens + 1]
        return wrk.format()
    end
end
