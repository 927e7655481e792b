//go:build tools

// Keeps the server's module in go.mod: it is built from there.
package main

import _ "github.com/envoyproxy/ratelimit/src/service_cmd/runner"
