#!/usr/bin/env bash
# Runs every test and then looks for what they left behind. Called by `make test`.
# GOFLAGS, TESTS (packages) and RUN (a -run pattern) narrow it down.
set -euo pipefail
cd "$(dirname "$0")/.."

go build -o bin/lab ./tests/lab/cmd/lab
bin/lab check
bin/lab down --stale

finish() {
	rc=$?
	trap - EXIT
	bin/lab residue || { [ "$rc" != 0 ] || rc=1; }
	bin/lab down --stale || true
	exit "$rc"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

export REPLUG_STOCK=${REPLUG_STOCK:-cloud-init}
once=(go test -count=1 -timeout 40m ${RUN:+-run "$RUN"})
if [ -n "${TESTS:-}" ]; then
	"${once[@]}" -p 1 $TESTS
	exit
fi
# Two packages at a time where one at least mostly waits: bpf beside the rest of the
# rooms and what is small, guests beside kernel. Labs that measure or load a host have it
# for themselves.
alone='/tests/(demo|e2e|host|lab)$'
waits='/tests/(guests|kernel)$'
failed=0
"${once[@]}" -p 2 $(go list ./... | grep -vE "$alone|$waits") || failed=1
"${once[@]}" -p 1 $(go list ./... | grep -E "$alone") || failed=1
"${once[@]}" -p 2 $(go list ./... | grep -E "$waits") || failed=1
exit "$failed"
