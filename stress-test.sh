#!/usr/bin/env bash
# Repeats the concurrency tests, a hundred times by default: some races, deadlocks
# and lost wake-ups show only once in a hundred runs. The script builds two test
# programs, one with and one without the race detector, and runs them itself, so
# that go test never answers from its cache of results. It stops at the first
# failure and keeps the log of that run.
#
# Environment:
#   ITERATIONS  runs of phase 1 and of phase 2 (default 100); phase 3 has a twentieth
#   SEED        seed of the random GOMAXPROCS, 0 to 32767 (default random; printed)
#   RUN_LIMIT   time limit of one run, in seconds (default 300)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

iterations=${ITERATIONS:-100}
seed=${SEED:-$RANDOM}
run_limit=${RUN_LIMIT:-300}
cpus=$(getconf _NPROCESSORS_ONLN)

concurrency=(TestConcurrentReaders TestReadCloseConcurrent
	TestMultiFileParallelism TestNoDeadlockOnEarlyClose)
scheduling=(TestStressWithRandomGOMAXPROCS)

usage() {
	echo "stress-test.sh: $*" >&2
	exit 2
}

[[ $iterations =~ ^[1-9][0-9]*$ ]] || usage "ITERATIONS=$iterations is not a positive number"
[[ $run_limit =~ ^[1-9][0-9]*$ ]] || usage "RUN_LIMIT=$run_limit is not a positive number of seconds"
[[ $seed =~ ^[0-9]+$ && $seed -le 32767 ]] || usage "SEED=$seed is not a number from 0 to 32767"
RANDOM=$seed

work=$(mktemp -d "${TMPDIR:-/var/tmp}/fsmount-stress.XXXXXX")
tmp=$work/tmp
mkdir "$tmp"
failed=
cleanup() {
	[[ -n $failed ]] || rm -rf --one-file-system "$work"
}
trap cleanup EXIT

runs=0
log=

# fail REASON: prints the end of the log, keeps the log and the test programs, and
# exits with 1.
fail() {
	failed=yes
	{
		printf '\nFAILED: %s\n' "$1"
		if [[ -s $log ]]; then
			printf 'The last lines of the log:\n\n'
			tail -n 40 "$log"
			printf '\nThe whole log: %s\n' "$log"
		fi
		printf 'To repeat it: SEED=%s ITERATIONS=%s ./stress-test.sh\n' "$seed" "$iterations"
	} >&2
	exit 1
}

# leftovers lists the mounts and processes that the runs so far left behind, one a
# line. It finds the mounts below the TMPDIR of the runs, and the processes that
# inherited that TMPDIR. It does not count any other fsmount on the machine.
leftovers() {
	local environ
	awk -v dir="$tmp/" 'index($2, dir) == 1 { print "mount " $2 }' /proc/self/mounts
	for environ in $(grep -lsxzF "TMPDIR=$tmp" /proc/[0-9]*/environ || true); do
		echo "process $(basename "${environ%/environ}") $(tr '\0' ' ' <"${environ%environ}cmdline")"
	done
}

# alternatives NAME...: prints the -test.run pattern that matches exactly these tests.
alternatives() {
	local IFS='|'
	echo "^($*)\$"
}

# run LABEL COUNT COMMAND...: does one run. Each test of the array $tests must pass
# COUNT times in it, so that a run without tests is a failure.
run() {
	local label=$1 count=$2 status=0 name passed left
	shift 2
	log=$work/$label.log
	TMPDIR=$tmp timeout --kill-after=10 $((run_limit + 30)) \
		"$@" -test.v -test.timeout="${run_limit}s" >"$log" 2>&1 || status=$?
	[[ $status -eq 0 ]] || fail "$label: exit status $status of: $*"
	for name in "${tests[@]}"; do
		passed=$(grep -c "^--- PASS: $name\(-[0-9]*\)\? " "$log" || true)
		[[ $passed -eq $count ]] || fail "$label: $name passed $passed times, not $count"
	done
	left=$(leftovers)
	[[ -z $left ]] || fail "$label: left behind:"$'\n'"$left"
	rm "$log"
	runs=$((runs + 1))
}

# progress LABEL N: prints every tenth run and the last.
progress() {
	if (($2 % 10 == 0 || $2 == iterations)); then
		printf '  %s %d/%d (%d s)\n' "$1" "$2" "$iterations" "$SECONDS"
	fi
}

cat <<TEXT
stress-test.sh asserts, with $iterations iterations, SEED=$seed and $cpus processors, that
  - readers get right bytes or an error, and never hang or race: alone, beside Close,
    on several files, and when Close comes before the download ends;
  - this holds for GOMAXPROCS from 1 to $cpus, and for 1, 2, 4 and 8 with 16 tests in
    parallel;
  - no run takes more than $run_limit s, and none leaves a mount or a process behind.

TEXT

echo "building the test programs"
log=$work/build.log
CGO_ENABLED=1 go test -race -c -o "$work/race.test" . >"$log" 2>&1 || fail "building with the race detector"
go test -c -o "$work/plain.test" . >"$log" 2>&1 || fail "building without the race detector"

tests=("${concurrency[@]}")
only=-test.run=$(alternatives "${tests[@]}")

echo "1. the concurrency tests under the race detector"
for ((i = 1; i <= iterations; i++)); do
	run "race-$i" 1 "$work/race.test" "$only"
	progress race "$i"
done

echo "2. the concurrency tests with random GOMAXPROCS"
for ((i = 1; i <= iterations; i++)); do
	procs=$((RANDOM % cpus + 1))
	run "gomaxprocs-$i-of-$procs" 1 env GOMAXPROCS="$procs" "$work/plain.test" "$only"
	progress gomaxprocs "$i"
done

echo "3. high parallelism under the race detector"
repeats=$(((iterations + 19) / 20))
for ((i = 1; i <= repeats; i++)); do
	run "parallel-$i" 8 "$work/race.test" "$only" \
		-test.parallel=16 -test.cpu=1,2,4,8 -test.count=2
done

echo "4. ${scheduling[*]} under the race detector"
tests=("${scheduling[@]}")
run scheduling 1 "$work/race.test" "-test.run=$(alternatives "${tests[@]}")"

printf '\nPASSED: %d runs in %d s, SEED=%d: no failure, no race, no hang, nothing left behind\n' \
	"$runs" "$SECONDS" "$seed"
