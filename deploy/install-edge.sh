#!/bin/sh
# Installs, upgrades or removes scout-edge on Debian or Raspberry Pi OS (32 or 64 bit).
#
# Safe to repeat. An upgrade builds the new version beside the old one and changes one link; the
# buffer and the settings stay. A version that cannot be built changes nothing.
set -eu

usage() {
  cat <<'TEXT'
usage: sudo sh deploy/install-edge.sh [options]

Installs scout-edge from this folder, or upgrades it. The buffer and the settings are kept.

  --wheels DIR       install from this folder of wheels, without a network
  --prefix DIR       install below DIR instead of / (for an SD card image, or a trial): no user is
                     made, no service is started, no package is installed
  --python PROGRAM   the Python to use (default python3; 3.11 or newer)
  --no-start         do not start or restart the service
  --uninstall        remove the program and the service; settings and buffer stay
  --purge            with --uninstall: remove settings and buffer, too. Refused while records wait
                     that the hub has not confirmed
  --discard-unsent   with --purge: remove them all the same; they are lost for ever
  --help             this text

afterwards:
  sudo scout-edge enrol --hub https://hub.example --token ...   the token comes from the operator
  sudo scout-edge check-config && sudo systemctl restart scout-edge
  sudo scout-edge doctor
TEXT
}

say() { printf 'install-edge: %s\n' "$*"; }
die() { printf 'install-edge: %s\n' "$1" >&2; [ -z "${2:-}" ] || printf '  hint: %s\n' "$2" >&2; exit 2; }

prefix='' wheels='' python=python3 start=yes action=install purge='' discard=''
while [ $# -gt 0 ]; do
  case $1 in
    --prefix | --wheels | --python)
      [ $# -ge 2 ] || die "$1 needs a value" "see --help"
      case $1 in
        --prefix) prefix=$2 ;;
        --wheels) wheels=$2 ;;
        --python) python=$2 ;;
      esac
      shift ;;
    --no-start) start='' ;;
    --uninstall) action=uninstall ;;
    --purge) purge=yes ;;
    --discard-unsent) discard=yes ;;
    -h | --help) usage; exit 0 ;;
    *) die "unknown option $1" "see --help" ;;
  esac
  shift
done
[ -z "$purge" ] || [ "$action" = uninstall ] || die "--purge goes with --uninstall" "see --help"

if [ -n "$prefix" ]; then
  mkdir -p "$prefix" || die "$prefix cannot be made"
  prefix=$(cd "$prefix" && pwd)
  [ "$prefix" != / ] || prefix=''
fi
system=yes
[ -z "$prefix" ] || system=''
[ -z "$system" ] || [ "$(id -u)" = 0 ] || die "this needs root" "say: sudo sh $0"
source=$(cd "$(dirname "$0")/.." && pwd)

home=$prefix/opt/scout
settings=$prefix/etc/scout
data=$prefix/var/lib/scout
unit=$prefix/etc/systemd/system/scout-edge.service
command=$prefix/usr/local/bin/scout-edge

service() { [ -z "$system" ] || ! [ -d /run/systemd/system ] || systemctl "$@"; }

install_python() {
  command -v "$python" >/dev/null 2>&1 && "$python" -c 'import venv, ensurepip' 2>/dev/null && return
  [ -n "$system" ] && command -v apt-get >/dev/null 2>&1 ||
    die "$python has no venv" "apt-get install python3-venv"
  say "installing python3-venv"
  apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends python3-venv >/dev/null ||
    die "python3-venv cannot be installed" "check the network, then: sudo apt-get install python3-venv"
}

install_edge() {
  [ -f "$source/edge_agent/pyproject.toml" ] || [ -n "$wheels" ] ||
    die "$source is no copy of Scout" "run the script from the folder where Scout was unpacked"
  [ -z "$wheels" ] || [ -d "$wheels" ] || die "there is no folder $wheels"
  install_python
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$("$python" -V 2>&1) is too old" "Scout needs Python 3.11: Debian 12, Raspberry Pi OS 12 or newer"

  if [ -n "$system" ] && ! id scout >/dev/null 2>&1; then
    say "making user scout"
    useradd --system --user-group --home-dir /var/lib/scout --shell /usr/sbin/nologin scout
  fi
  mkdir -p "$home/releases" "$settings" "$data" "$(dirname "$unit")" "$(dirname "$command")"
  chmod 755 "$home" "$home/releases"
  chmod 750 "$settings" "$data"
  [ -z "$system" ] || { chown root:scout "$settings"; chown scout:scout "$data"; }

  release=$home/releases/$(date -u +%Y%m%dT%H%M%SZ).$$
  say "building $release"
  trap 'rm -rf "$release"' EXIT
  trap 'exit 130' INT TERM
  "$python" -m venv "$release" || die "the Python environment cannot be made" "is the disk full? df -h"
  pip() { "$release/bin/python" -m pip --disable-pip-version-check --no-input --quiet "$@"; }
  failed="the packages cannot be installed; nothing was changed"
  if [ -n "$wheels" ]; then
    pip install --no-index --find-links "$wheels" --only-binary :all: scout-edge ||
      die "$failed" "$wheels must hold scout_edge, scout_shared and what requirements/edge.txt names"
  else
    # Only pure wheels, pinned and hashed: nothing is compiled, also on 32 bit.
    pip install --require-hashes --only-binary :all: -r "$source/requirements/edge.txt" ||
      die "$failed" "check the network, or bring the wheels along: --wheels DIR"
    # Built from a copy: the folder may be read-only, or another user's.
    copy=$release/source
    mkdir "$copy" && cp -R "$source/shared" "$source/edge_agent" "$copy/"
    pip install --no-deps "$copy/shared" "$copy/edge_agent" ||
      die "$failed" "check the network, or bring the wheels along: --wheels DIR"
    rm -rf "$copy"
  fi
  version=$("$release/bin/python" -m scout_edge.cli version) || die "the new version does not start"
  # The root may be read-only later: what Python would write then is written now.
  "$release/bin/python" -m compileall -q "$release/lib" >/dev/null 2>&1 || true

  [ -e "$settings/edge.toml" ] || install -m 640 "$source/deploy/samples/edge.toml" "$settings/edge.toml"
  [ -e "$settings/edge.env" ] || { umask 077; echo 'SCOUT_MQTT_PASSWORD=' > "$settings/edge.env"; umask 022; }
  [ -z "$system" ] || { chown root:scout "$settings/edge.toml"; chown root:root "$settings/edge.env"; }
  install -m 644 "$source/deploy/systemd/scout-edge.service" "$unit"
  write_command
  # rename(2) of a link: at no moment is there no version.
  ln -s "releases/$(basename "$release")" "$home/current.new"
  before=$(readlink "$home/current" 2>/dev/null || true)
  mv -T "$home/current.new" "$home/current"
  trap - EXIT
  for old in "$home"/releases/*; do  # the present one and the one before stay
    case releases/$(basename "$old") in
      "releases/$(basename "$release")" | "$before") ;;
      *) rm -rf "$old" ;;
    esac
  done
  say "$version is installed in $home/current"
  start_service
}

# The command as its service runs it: same user, same secrets, so that the doctor sees what the
# agent sees and no file of the buffer ever belongs to root.
write_command() {
  cat > "$command.new" <<'WRAPPER'
#!/bin/sh
set -eu
root=$(cd "$(dirname "$(readlink -f "$0")")/../../.." && pwd)
[ "$root" != / ] || root=''
if [ -r "$root/etc/scout/edge.env" ]; then
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      SCOUT_*=*)
        value=${line#*=}
        case $value in
          \"*\") value=${value#\"} value=${value%\"} ;;
          \'*\') value=${value#\'} value=${value%\'} ;;
        esac
        export "${line%%=*}=$value" ;;
    esac
  done < "$root/etc/scout/edge.env"
fi
python=$root/opt/scout/current/bin/python
if [ "$(id -u)" = 0 ] && [ -z "$root" ] && id scout >/dev/null 2>&1; then
  exec setpriv --reuid scout --regid scout --init-groups "$python" -m scout_edge.cli "$@"
fi
exec "$python" -m scout_edge.cli "$@"
WRAPPER
  chmod 755 "$command.new"
  mv "$command.new" "$command"
}

start_service() {
  [ -n "$system" ] || return 0
  service daemon-reload
  service enable --quiet scout-edge
  [ -n "$start" ] || return 0
  if "$command" check-config; then
    service restart scout-edge
    say "started; look at it with: sudo scout-edge status"
  else
    say "not started: enrol the device, then check and start it:"
    say "  sudo scout-edge enrol --hub https://hub.example --token ..."
    say "  sudo scout-edge check-config && sudo systemctl restart scout-edge"
  fi
}

uninstall_edge() {
  if [ -n "$purge" ] && [ -z "$discard" ]; then
    for file in "$data"/*.db; do
      [ -e "$file" ] || continue
      backlog=$("$command" status --json --config "$settings/edge.toml" 2>/dev/null |
        sed -n 's/.*"backlog_records": *\([0-9]*\).*/\1/p') || backlog=''
      [ "$backlog" = 0 ] ||
        die "${backlog:-an unknown number of} records in $file are not confirmed by the hub" \
          "send them first: sudo systemctl stop scout-edge; sudo scout-edge drain. Or --discard-unsent"
    done
    for file in "$data"/*.db.recovered-* "$data"/*.db.damaged-* "$data"/*.db.forked-*; do
      [ ! -e "$file" ] ||
        die "$file: an older buffer lies here, and may hold what the hub does not have" \
          "copy it away for the engineer on call, and drain. Then --discard-unsent"
    done
  fi
  service disable --quiet --now scout-edge 2>/dev/null || true
  rm -rf "$home"
  rm -f "$unit" "$command"
  service daemon-reload
  if [ -n "$purge" ]; then
    # Only what is the agent's: the folder may hold something else, or be a mounted partition.
    rm -f "$data"/*.db "$data"/*.db-wal "$data"/*.db-shm "$data"/*.db-journal "$data"/*.db.lock "$data"/*.db.extent \
      "$data"/*.db.ballast "$data"/*.db.credentials "$data"/*.db.broker-ca.pem \
      "$data"/*.db.enrolment "$data"/*.db.remote "$data"/*.db.suspect \
      "$data"/*.db.recovered-* "$data"/*.db.damaged-* "$data"/*.db.forked-*
    rmdir "$data" 2>/dev/null || say "$data stays: it is a partition, or holds other files"
    rm -rf "$settings"
    [ -z "$system" ] || ! id scout >/dev/null 2>&1 || userdel scout
    say "removed, with settings and buffer"
  else
    say "removed; settings and buffer stay in $settings and $data"
  fi
}

if [ "$action" = install ]; then install_edge; else uninstall_edge; fi
