# syntax=docker/dockerfile:1
# The gateway alone on a base without a shell: docker build -t api-gateway .
# Run: docker run -p 3000:3000 -e JWT_SECRET=... -e REDIS_HOST=redis api-gateway

FROM rust:1.95-bookworm AS build
# cmake builds zlib-ng, which Pingora compresses with.
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Crates and build results live in cache mounts, which outlast a change of the sources but are no part of the
# image: hence the copy in the same step. Cargo goes by time stamps, and an older file than the cache's (another
# branch, an archive) would pass for built: touching our own sources rebuilds this one crate, never the others.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    find build.rs src conf -type f -exec touch {} + \
    && cargo build --release --locked --bin api-gateway \
    && install -D target/release/api-gateway /out/api-gateway

# The same Debian as above, so that the C library is the one that was linked.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/api-gateway /usr/local/bin/api-gateway
# `nonroot` by its number, so that Kubernetes sees that it is not root.
USER 65532:65532
ENV NODE_ENV=production HOST=0.0.0.0 PORT=3000
EXPOSE 3000
STOPSIGNAL SIGTERM
# There is no curl: the binary asks its own /live. A start waits for no upstream, so 5 s are plenty.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/api-gateway", "--check-live"]
ENTRYPOINT ["/usr/local/bin/api-gateway"]
