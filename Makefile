# The commands that people and CI run. Plain `make` builds ./fsmount; `make help`
# lists the rest.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build
.PHONY: build demo lint test test-race test-short test-browser ci cross stress-test bench bench-chart clean help

GO ?= go

build: ## build ./fsmount, one static binary
	CGO_ENABLED=0 $(GO) build -buildvcs=auto -trimpath -o fsmount .

# fsmount runs in the background with its stdout on descriptor 3. If it dies, the
# descriptor ends, and so does the wait for its line. The trap cleans up after a
# failure; after a success it only removes the directory.
demo: build ## mount the built-in demo, verify it while it streams, unmount
	@dir=$$(mktemp -d) pid=
	fail() { echo "demo: $$*" >&2; exit 1; }
	trap '[ -z "$$pid" ] || kill -KILL "$$pid" 2>/dev/null || true
		! mountpoint -q "$$dir" || fusermount3 -uz "$$dir" || umount -l "$$dir" || true
		rmdir "$$dir"' EXIT
	exec 3< <(exec ./fsmount -mount "$$dir")
	pid=$$!
	IFS= read -r -t 60 ready <&3 || fail "fsmount did not say that it is ready"
	echo "$$ready"
	begin=$$(date +%s%N)
	head -c 1M "$$dir/demo-slow-64MiB.bin" | wc -c | grep -qx 1048576 || fail "the first MiB is short"
	first=$$(( ($$(date +%s%N) - begin) / 1000000 ))
	(cd "$$dir" && sha256sum -c SHA256SUMS)
	whole=$$(( ($$(date +%s%N) - begin) / 1000000 ))
	[ $$((first * 2)) -lt "$$whole" ] || fail "no streaming: first MiB after $$first ms, all after $$whole ms"
	kill -TERM "$$pid"; status=0; wait "$$pid" || status=$$?; pid=
	[ "$$status" = 0 ] || fail "fsmount ended with status $$status on SIGTERM"
	! mountpoint -q "$$dir" || fail "$$dir is still mounted"
	echo "demo: read the first MiB of a slow 64 MiB file after $$first ms, had every file verified after $$whole ms, unmounted"

# staticcheck -matrix reports code as unused only if no build uses it.
lint: ## gofmt, go vet, staticcheck, go mod tidy: fails on any finding
	@unformatted=$$(gofmt -l .)
	[ -z "$$unformatted" ] || { echo "not gofmt-ed: $$unformatted" >&2; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags=bench,gatefault,browser ./...
	printf '%s\n' 'plain:' 'bench: -tags=bench' 'gates: -tags=gatefault' 'browser: -tags=browser' |
		$(GO) tool staticcheck -matrix ./...
	$(GO) mod tidy -diff
	echo 'lint: no finding'

test: ## all tests
	$(GO) test -count=1 -timeout=20m ./...

test-race: ## all tests under the race detector; needs a C compiler
	CGO_ENABLED=1 $(GO) test -race -timeout=25m -count=1 ./...

test-short: ## the tests without the long ones
	$(GO) test -short -count=1 -timeout=10m ./...

# -parallel=4: the browsers of the four ways to upload run side by side, and mostly wait.
test-browser: ## upload with chromium what downloads from slow and faulty origins
	$(GO) test -tags=browser -run=TestBrowser -count=1 -parallel=4 -timeout=10m -v .

# Under the race detector, the short loops, and of the tests of real mounts those in which
# readers are stopped, killed or blocked: "make test" has run all, and "make test-race" does.
ci: lint test ## what every change must pass
	CGO_ENABLED=1 $(GO) test -race -short -timeout=20m -count=1 -run 'Test[^K]|TestKernel(Killed|Caught|Blocked|Stalled|Stop|Term)|Fuzz' ./...

cross: ## see that it compiles for each supported platform
	CGO_ENABLED=0 GOOS=linux GOARCH=amd64 $(GO) build -o /dev/null .
	CGO_ENABLED=0 GOOS=linux GOARCH=arm64 $(GO) build -o /dev/null .

stress-test: ## run the concurrency tests many times: ITERATIONS=100 SEED=n
	./stress-test.sh

bench: ## measure against the floors of this machine, print a table
	$(GO) test -tags bench -run TestBench -count=1 -timeout 30m -v .

bench-chart: ## measure beside the installed peers, draw docs/bench.svg
	@figures=$$(mktemp)
	trap 'rm -f "$$figures"' EXIT
	FSMOUNT_BENCH_CHART=$$figures $(GO) test -tags bench -run TestBench/kernel/peers -count=1 -timeout 30m -v .
	python3 docs/bench.py "$$figures"

clean: ## remove what was built
	rm -f fsmount *.test

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
