# Net::HTTP: CLIENT BASE VARIANT... sends the seed call once a variant, and prints each with the status; further bases with
# variants may follow.
require "net/http"
require "stringio"
require "zlib"

BODY = '{"attributes": {"supervisorNote": "テスト"}}'
TYPES = {
  "text" => "text/plain",
  "form" => "application/x-www-form-urlencoded",
  "charset" => "application/json; charset=utf-8",
  "json" => "application/json",
}
client, *given = ARGV
base = nil
given.each do |variant|
  next base = variant if variant.include?("://")
  uri = URI("#{base}/api/v2/conversations/web/instances/#{client}-#{variant}/participants/p1")
  request = Net::HTTP::Patch.new(uri, "Authorization" => "Bearer one")
  request["Content-Type"] = TYPES[variant] if TYPES[variant]
  request["Expect"] = "100-continue" if variant == "expect"
  if variant == "chunked"
    request["Transfer-Encoding"] = "chunked"
    request.body_stream = StringIO.new(BODY)
  elsif variant == "gzip"
    request["Content-Encoding"] = "gzip"
    request.body = Zlib.gzip(BODY)
  else
    request.body = BODY
  end
  begin
    reply = Net::HTTP.start(uri.host, uri.port, read_timeout: 20) { |http| http.request(request) }
    puts "#{variant} #{reply.code}"
  rescue StandardError => e
    puts "#{variant} #{e.class}"
  end
end
