# The command-line tool, built from this checkout:
#
#   docker build -t a3s-event .
#   docker run --rm -v "$PWD:/data" a3s-event --url sqlite:/data/events.db history

FROM rust:1-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN cargo build --release --locked -p a3s-event-cli && scripts/third-party >THIRD-PARTY.txt

FROM debian:bookworm-slim
# Certificates of the authorities, for servers with TLS.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --no-create-home --home-dir /data --uid 10001 events \
    && install -d -o events /data
COPY --from=build /source/target/release/a3s-event /usr/local/bin/a3s-event
COPY --from=build /source/LICENSE /source/THIRD-PARTY.txt /usr/local/share/doc/a3s-event/
USER events
WORKDIR /data
ENTRYPOINT ["a3s-event"]
CMD ["--help"]
