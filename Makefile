# Replug. The two commands a newcomer needs, as root: `make demo` and `make test`.
# Everything else: `make help`.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

GO    ?= go
# The clang that both Debian 12 and 13 have: another one makes other bytes.
CLANG ?= clang-19
STRIP ?= llvm-strip-19
PROGRAMS := replug replug-server replug-host replug-guest
# How long `make fuzz` looks.
FUZZ := 10m
# And for how long at each parser of what a guest says.
FUZZ_EACH := 20s
FUZZ_TARGETS := dhcp:FuzzAnswer dhcp:FuzzAnswer6 nd:FuzzParse imds:FuzzHTTP imds:FuzzHealth guest:FuzzBusMessage
# Bytes that the guest's agent may have.
GUEST_MAX := 8388608

# What the programs and the demo need, and what building and testing need on top.
# A virtual machine needs no network boot, so QEMU's recommends stay out.
PACKAGES := qemu-system-x86 qemu-utils busybox-static xz-utils tzdata ca-certificates
PACKAGES_TEST := qemu-system-arm systemd clang-19 llvm-19 libbpf-dev linux-libc-dev protobuf-compiler libprotobuf-dev \
	e2fsprogs iproute2 ethtool procps iperf3 tcpdump tshark vagrant \
	isc-dhcp-client dhcpcd-base dbus-daemon mmdebstrap kmod cpio gzip nftables iptables

export DEBIAN_FRONTEND := noninteractive
export CGO_ENABLED := 0

##@ The two commands

demo: build $(if $(GUEST),setup-test) ## play the story: pool, claim, live swap, undo, faults; writes out/demo.json. GUEST=debian: with the stock image
	mkdir -p out
	trap 'rc=$$?; bin/replug lab down --stale >&2 || true; exit $$rc' EXIT
	bin/replug demo --out out/demo.json $(if $(GUEST),--guest $(GUEST))

test: setup-test build ## run all tests but the long ones (test-long, test-guests), those with real BPF, namespaces and QEMU too
	tests/run.sh

test-stock: setup-test build ## take the stock Debian image through pool, claim, reboots, swaps, and the story of the demo
	REPLUG_STOCK=all TESTS='./tests/host ./tests/demo' RUN='TestCloudInit|TestRandomNumbersOfTwins|TestDemoDebian' tests/run.sh

fuzz: setup-test ## put random frames through the datapath and its model for FUZZ (10m), then what guests say through the parsers
	$(GO) test -count=1 -timeout 0 -run '^TestModel$$' -v ./bpf -fuzz-for $(FUZZ)
	for target in $(FUZZ_TARGETS); do \
		$(GO) test -run '^$$' -fuzz "^$${target#*:}$$" -fuzztime $(FUZZ_EACH) ./dataplane/$${target%:*}; done

test-long: ## what is too long for every day: fuzz, then the datapath on Debian 12's kernel (make test has that too), then test-stock
	$(MAKE) fuzz
	TESTS=./tests/kernel tests/run.sh
	$(MAKE) test-stock

##@ Building

build: setup $(PROGRAMS:%=build-%) ## build the programs into bin/
	size=$$(stat -c %s bin/replug-guest)
	[ "$$size" -lt $(GUEST_MAX) ] || { echo "bin/replug-guest has $$size bytes, at most $(GUEST_MAX) are allowed" >&2; exit 1; }

build-%:
	rm -f bin/$*
	$(GO) build -trimpath -ldflags '-s -w' -o bin/$* ./cmd/$*

generate: setup-test ## make the BPF objects and the protobuf code again, byte for byte
	BPF2GO_CC=$(CLANG) BPF2GO_STRIP=$(STRIP) $(GO) generate ./...
	tests/protoc.sh

bench: setup-test build ## measure the figures beside their floors; writes out/bench.json
	mkdir -p out
	trap 'rc=$$?; bin/replug lab down --stale >&2 || true; exit $$rc' EXIT
	bin/replug bench --out out/bench.json

package: setup ## make Debian packages of the agent in guests: out/replug-guest_*.deb
	for arch in amd64 arm64; do GO=$(GO) cmd/replug-guest/deb/make.sh $$arch out; done

test-guests: setup-test build ## swap a guest of every DHCP client, in machines, and install, use and purge the package; writes out/guests.json. RUNS=3: swaps a line (10); REPLUG_GUESTS_ONLY='dual stack: dhcpcd': a pattern for lines
	mkdir -p out
	[ -n "$${REPLUG_GUESTS_ONLY:-}" ] || rm -f out/guests.json
	REPLUG_GUESTS_RUNS=$${RUNS:-10} REPLUG_GUESTS_OUT=$(CURDIR)/out/guests.json \
		$(GO) test -count=1 -timeout 45m -run TestTable -v ./tests/guests

##@ Keeping house

setup: ## install the packages and modules that building and the demo need
	@$(call install,$(PACKAGES))
	@$(GO) mod download

setup-test: setup ## install what the tests need on top
	@$(call install,$(PACKAGES_TEST))

fmt: ## format Go and C
	gofmt -w $$(git ls-files '*.go')
	clang-format -i $$(git ls-files 'bpf/*.c' 'bpf/*.h')

lint: ## gofmt and go vet, as the tests do
	out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "not formatted: $$out" >&2; exit 1; }
	$(GO) vet ./...

clean: ## remove what was built here; the cache of guest images (REPLUG_CACHE, or ~/.cache/replug) stays
	rm -rf bin out

help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# install PACKAGES: only what is missing, and without a word when nothing is.
define install
missing=; \
for p in $(1); do \
	[ "$$(dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null || true)" = installed ] || missing="$$missing $$p"; \
done; \
if [ -n "$$missing" ]; then \
	if [ "$$(id -u)" != 0 ]; then \
		echo "these packages are missing:$$missing. Run this as root, or ask for: apt-get install$$missing" >&2; exit 1; \
	fi; \
	echo "installing$$missing"; \
	log=$$(mktemp); \
	{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; } >"$$log" 2>&1 \
		|| { tail -20 "$$log" >&2; echo "apt-get could not install$$missing: see above" >&2; rm -f "$$log"; exit 1; }; \
	rm -f "$$log"; \
fi
endef

.ONESHELL:
.PHONY: demo test test-long test-guests package test-stock fuzz build generate bench setup setup-test fmt lint clean help
