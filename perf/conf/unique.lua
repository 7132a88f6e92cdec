-- wrk script: an SDK-like POST whose head and body differ in every request; TOKEN and PERCENTILES (0,50,…) come from
-- the environment. The last line that it prints is the result as JSON.
local i = 0
local token = os.getenv("TOKEN") or "none"
request = function()
  i = i + 1
  local body = '{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi ' .. i .. '"}]}'
  return wrk.format("POST", nil, {
    ["Content-Type"] = "application/json", ["Authorization"] = "Bearer " .. token,
    ["User-Agent"] = "OpenAI/Python 1.50.0", ["X-Stainless-Lang"] = "python", ["X-Stainless-OS"] = "Linux",
    ["X-Stainless-Arch"] = "x64", ["X-Stainless-Runtime"] = "CPython", ["Accept"] = "application/json",
    ["Accept-Encoding"] = "gzip, deflate, br", ["X-Request-Id"] = "req-" .. i,
    ["traceparent"] = "00-" .. string.format("%032x", i) .. "-0000000000000001-01",
  }, body)
end
done = function(summary, latency, requests)
  local points = {}
  for p in string.gmatch(os.getenv("PERCENTILES"), "[^,]+") do
    points[#points + 1] = string.format('"%s":%d', p, latency:percentile(tonumber(p)))
  end
  local e = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"seconds":%.6f,"latencies_us":{%s},"errors":{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}}\n',
    summary.requests, summary.duration / 1e6, table.concat(points, ","), e.connect, e.read, e.write, e.status, e.timeout))
end
