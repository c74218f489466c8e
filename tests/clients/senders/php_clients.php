<?php
// curl and streams: CLIENT BASE VARIANT... sends the seed call once a variant, and prints each with the status; further
// bases with variants may follow.
const BODY = '{"attributes": {"supervisorNote": "テスト"}}';
const TYPES = [
    'text' => 'text/plain',
    'form' => 'application/x-www-form-urlencoded',
    'charset' => 'application/json; charset=utf-8',
    'json' => 'application/json',
];

function by_curl(string $url, string $variant): string
{
    $fields = ['Authorization: Bearer one'];
    if (isset(TYPES[$variant])) $fields[] = 'Content-Type: ' . TYPES[$variant];
    if ($variant === 'none') $fields[] = 'Content-Type:';
    if ($variant === 'expect') $fields[] = 'Expect: 100-continue';
    if ($variant === 'chunked') $fields[] = 'Transfer-Encoding: chunked';
    if ($variant === 'gzip') $fields[] = 'Content-Encoding: gzip';
    $handle = curl_init($url);
    curl_setopt_array($handle, [
        CURLOPT_CUSTOMREQUEST => 'PATCH',
        CURLOPT_POSTFIELDS => $variant === 'gzip' ? gzencode(BODY) : BODY,
        CURLOPT_HTTPHEADER => $fields,
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_TIMEOUT => 20,
        CURLOPT_HTTP_VERSION => $variant === 'http10' ? CURL_HTTP_VERSION_1_0 : CURL_HTTP_VERSION_NONE,
    ]);
    $done = curl_exec($handle);
    return $done === false ? 'error-' . curl_errno($handle) : (string) curl_getinfo($handle, CURLINFO_RESPONSE_CODE);
}

function by_streams(string $url, string $variant): string
{
    $fields = "Authorization: Bearer one\r\n";
    if (isset(TYPES[$variant])) $fields .= 'Content-Type: ' . TYPES[$variant] . "\r\n";
    $options = ['method' => 'PATCH', 'header' => $fields, 'content' => BODY, 'ignore_errors' => true, 'timeout' => 20];
    if ($variant === 'http10') $options['protocol_version'] = 1.0;
    $done = @file_get_contents($url, false, stream_context_create(['http' => $options]));
    return $done === false ? 'error' : explode(' ', $http_response_header[0])[1];
}

[, $client] = $argv;
$base = '';
foreach (array_slice($argv, 2) as $variant) {
    if (str_contains($variant, '://')) {
        $base = $variant;
        continue;
    }
    $url = "$base/api/v2/conversations/web/instances/$client-$variant/participants/p1";
    echo $variant, ' ', $client === 'php-curl' ? by_curl($url, $variant) : by_streams($url, $variant), "\n";
}
