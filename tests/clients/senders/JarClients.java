// Apache HttpClient 4 and 5, and OkHttp: CLIENT BASE VARIANT… sends the seed call once a variant, and prints each with
// the status that came back; further bases with variants may follow.
import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.util.Map;

public class JarClients {
    static final String BODY = "{\"attributes\": {\"supervisorNote\": \"\u30c6\u30b9\u30c8\"}}";
    static final Map<String, String> TYPES = Map.of(
        "text", "text/plain",
        "form", "application/x-www-form-urlencoded",
        "charset", "application/json; charset=utf-8",
        "json", "application/json");

    static int apache4(String url, String variant) throws Exception {
        var request = new org.apache.http.client.methods.HttpPatch(url);
        request.setHeader("Authorization", "Bearer one");
        if (TYPES.containsKey(variant)) request.setHeader("Content-Type", TYPES.get(variant));
        org.apache.http.HttpEntity entity = new org.apache.http.entity.StringEntity(BODY, StandardCharsets.UTF_8);
        if (variant.equals("none") || variant.equals("chunked")) {
            var bytes = new org.apache.http.entity.ByteArrayEntity(BODY.getBytes(StandardCharsets.UTF_8));
            bytes.setChunked(variant.equals("chunked"));
            entity = bytes;
        }
        if (variant.equals("gzip")) entity = new org.apache.http.client.entity.GzipCompressingEntity(entity);
        request.setEntity(entity);
        if (variant.equals("http10")) request.setProtocolVersion(org.apache.http.HttpVersion.HTTP_1_0);
        if (variant.equals("expect"))
            request.setConfig(
                org.apache.http.client.config.RequestConfig.custom().setExpectContinueEnabled(true).build());
        try (var client = org.apache.http.impl.client.HttpClients.createDefault();
             var reply = client.execute(request)) {
            return reply.getStatusLine().getStatusCode();
        }
    }

    static int apache5(String url, String variant) throws Exception {
        var request = new org.apache.hc.client5.http.classic.methods.HttpPatch(url);
        request.setHeader("Authorization", "Bearer one");
        if (TYPES.containsKey(variant)) request.setHeader("Content-Type", TYPES.get(variant));
        byte[] bytes = BODY.getBytes(StandardCharsets.UTF_8);
        org.apache.hc.core5.http.HttpEntity entity =
            new org.apache.hc.core5.http.io.entity.StringEntity(BODY, StandardCharsets.UTF_8);
        if (variant.equals("none") || variant.equals("chunked"))
            entity = new org.apache.hc.core5.http.io.entity.ByteArrayEntity(bytes, null, variant.equals("chunked"));
        if (variant.equals("gzip")) entity = new org.apache.hc.client5.http.entity.GzipCompressingEntity(entity);
        request.setEntity(entity);
        try (var client = org.apache.hc.client5.http.impl.classic.HttpClients.createDefault()) {
            return client.execute(request, reply -> reply.getCode());
        }
    }

    static int okhttp(String url, String variant) throws Exception {
        byte[] bytes = BODY.getBytes(StandardCharsets.UTF_8);
        var type = variant.equals("none") ? null
            : okhttp3.MediaType.parse(TYPES.getOrDefault(variant, "text/plain; charset=utf-8"));
        okhttp3.RequestBody body = okhttp3.RequestBody.create(type, bytes);
        var request = new okhttp3.Request.Builder().url(url).header("Authorization", "Bearer one").patch(body);
        if (variant.equals("expect")) request.header("Expect", "100-continue");
        try (var reply = new okhttp3.OkHttpClient().newCall(request.build()).execute()) {
            return reply.code();
        }
    }

    public static void main(String[] args) throws Exception {
        String base = "";
        for (int at = 1; at < args.length; at++) {
            String variant = args[at];
            if (variant.contains("://")) {
                base = variant;
                continue;
            }
            String url = base + "/api/v2/conversations/web/instances/" + args[0] + "-" + variant
                + "/participants/p1";
            String status;
            try {
                status = "" + switch (args[0]) {
                    case "apache4" -> apache4(url, variant);
                    case "apache5" -> apache5(url, variant);
                    default -> okhttp(url, variant);
                };
            } catch (Exception error) {
                status = error.getClass().getSimpleName();
            }
            System.out.println(variant + " " + status);
        }
        System.exit(0);
    }
}
