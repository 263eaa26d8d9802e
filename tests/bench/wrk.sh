#!/bin/sh
# In place of wrk: asks once, by a real client, and makes figures up.
for url; do :; done
case "$*" in *"-H"*) range="-r 4096-8191" ;; esac
curl -s -f $range -o /dev/null "$url" || exit 1
echo '{"microseconds": 2000000, "requests": 10, "bytes": 40960, "p50": 1500, "p99": 2500,' \
    "\"errors\": ${WRK_ERRORS:-0}}" >&2
