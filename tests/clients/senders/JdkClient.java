// The JDK's own client: CLIENT BASE VARIANT… sends the seed call once a variant, and prints each
// with the status; further bases with variants may follow.
import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Map;

public class JdkClient {
    static final String BODY = "{\"attributes\": {\"supervisorNote\": \"\u30c6\u30b9\u30c8\"}}";
    static final Map<String, String> TYPES = Map.of(
        "text", "text/plain",
        "form", "application/x-www-form-urlencoded",
        "charset", "application/json; charset=utf-8",
        "json", "application/json");

    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        String base = "";
        for (int at = 1; at < args.length; at++) {
            String variant = args[at];
            if (variant.contains("://")) {
                base = variant;
                continue;
            }
            String url = base + "/api/v2/conversations/web/instances/" + args[0] + "-" + variant
                + "/participants/p1";
            byte[] body = BODY.getBytes(StandardCharsets.UTF_8);
            HttpRequest.BodyPublisher publisher = variant.equals("chunked")
                ? HttpRequest.BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body))
                : HttpRequest.BodyPublishers.ofString(BODY);
            HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url))
                .timeout(Duration.ofSeconds(20))
                .header("Authorization", "Bearer one")
                .method("PATCH", publisher);
            if (TYPES.containsKey(variant)) request.header("Content-Type", TYPES.get(variant));
            if (variant.equals("expect")) request.expectContinue(true);
            String status;
            try {
                status = "" + client.send(request.build(), HttpResponse.BodyHandlers.discarding()).statusCode();
            } catch (Exception error) {
                status = error.getClass().getSimpleName();
            }
            System.out.println(variant + " " + status);
        }
    }
}
