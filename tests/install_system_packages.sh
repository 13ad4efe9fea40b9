#!/bin/sh
# Debian packages that some tests need: a production broker, a browser, a terminal multiplexer, a
# library that sets the clock of one process.
# Only as root with apt, only what is missing. Never fails: a test whose program is absent is
# skipped with that reason, and fails where CI=true.
set -u
missing=""
for program in mosquitto chromium tmux faketime; do
  PATH="$PATH:/usr/sbin" command -v "$program" >/dev/null 2>&1 || missing="$missing $program"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "not installed:$missing (needs root and apt; the tests that use them are skipped)" >&2
  exit 0
fi
echo "installing$missing (once)"
# mosquitto's package starts a service on port 1883; only the program is wanted. 101: may not run.
policy=/usr/sbin/policy-rc.d
ours=""
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod 755 "$policy" && ours=yes
fi
trap '[ -z "$ours" ] || rm -f "$policy"' EXIT
trap 'exit 130' INT TERM
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
{
  apt-get update -q
  # One by one: a package that this release lacks must not keep the others out.
  for program in $missing; do
    apt-get install -q -y --no-install-recommends "$program" || echo "FAILED $program"
  done
} > "$log" 2>&1 < /dev/null
grep '^FAILED' "$log" >/dev/null && { echo "apt-get could not install everything:" >&2; tail -n 5 "$log" >&2; }
rm -f "$log"
exit 0
