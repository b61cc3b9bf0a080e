#!/usr/bin/env bash
# Makes the Go code of every .proto file of the repository, with the plugins
# that go.mod pins. Called by `make generate`; with -n it writes into the
# directory given instead, so that a test can compare.
set -euo pipefail
cd "$(dirname "$0")/.."
out=.
if [ "${1:-}" = -n ]; then out=${2:?usage: protoc.sh [-n DIRECTORY]}; fi

plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT
go build -o "$plugins/protoc-gen-go" google.golang.org/protobuf/cmd/protoc-gen-go
go build -o "$plugins/protoc-gen-go-grpc" google.golang.org/grpc/cmd/protoc-gen-go-grpc

# Each directory is a package of its own.
find . -name '*.proto' -not -path './.git/*' -printf '%P\n' | LC_ALL=C sort | while read -r file; do
	PATH="$plugins:$PATH" protoc -I . \
		--go_out="$out" --go_opt=paths=source_relative \
		--go-grpc_out="$out" --go-grpc_opt=paths=source_relative "$file"
done
