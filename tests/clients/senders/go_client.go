// Go's net/http: CLIENT BASE VARIANT… sends the seed call once a variant, and prints each with the status; further
// bases with variants may follow.
package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

const body = `{"attributes": {"supervisorNote": "テスト"}}`

var types = map[string]string{
	"text":    "text/plain",
	"form":    "application/x-www-form-urlencoded",
	"charset": "application/json; charset=utf-8",
	"json":    "application/json",
}

func content(variant string) io.Reader {
	if variant == "gzip" {
		var packed bytes.Buffer
		writer := gzip.NewWriter(&packed)
		writer.Write([]byte(body))
		writer.Close()
		return &packed
	}
	if variant == "chunked" {
		return io.MultiReader(strings.NewReader(body[:10]), strings.NewReader(body[10:]))
	}
	return strings.NewReader(body)
}

func main() {
	client, base := os.Args[1], ""
	for _, variant := range os.Args[2:] {
		if strings.Contains(variant, "://") {
			base = variant
			continue
		}
		url := base + "/api/v2/conversations/web/instances/" + client + "-" + variant + "/participants/p1"
		request, _ := http.NewRequest("PATCH", url, content(variant))
		request.Header.Set("Authorization", "Bearer one")
		if given, known := types[variant]; known {
			request.Header.Set("Content-Type", given)
		}
		if variant == "gzip" {
			request.Header.Set("Content-Encoding", "gzip")
		}
		if variant == "expect" {
			request.Header.Set("Expect", "100-continue")
		}
		reply, err := http.DefaultClient.Do(request)
		if err != nil {
			fmt.Println(variant, "error")
			continue
		}
		io.Copy(io.Discard, reply.Body)
		reply.Body.Close()
		fmt.Println(variant, reply.StatusCode)
	}
}
