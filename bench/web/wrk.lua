-- Prints what wrk has seen, as JSON.
done = function(summary, latency, requests)
  local e = summary.errors
  io.stderr:write(string.format(
    '{"microseconds": %d, "requests": %d, "bytes": %.0f, "p50": %.1f, "p99": %.1f, '
      .. '"errors": %d}\n',
    summary.duration, summary.requests, summary.bytes, latency:percentile(50),
    latency:percentile(99), e.connect + e.read + e.write + e.status))
end
