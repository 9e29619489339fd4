#!/usr/bin/env bash
# Runs a command with a fresh PostgreSQL of its own: tests/with-postgres.sh CMD [ARG…]
#
# The server listens on 127.0.0.1 at a port that it finds free, keeps its data in a new temporary folder, has the durability
# that PostgreSQL has by default (fsync on), and is stopped and removed when CMD ends, however it ends. CMD finds it by
# MILLRACE_TEST_POSTGRES, the URL of a superuser without a password. The exit code is CMD's. Several can run side by side. CMD
# gets no terminal to read from.
#
# The binaries are looked for beside pg_config, in Debian's and Homebrew's folders and on the PATH; MILLRACE_POSTGRES_BIN
# names another folder. Root on Debian or Ubuntu gets the package installed when there is none.
set -euo pipefail

say() { printf 'with-postgres: %s\n' "$*" >&2; }
die() { say "$*"; exit 69; }

[ "$#" -gt 0 ] || { say "usage: $0 CMD [ARG…]"; exit 64; }

# ── The binaries ────────────────────────────────────────────────────────────────────────────────────────────────────

# Prints the folder of initdb and pg_ctl, of the newest version where there are several.
find_binaries() {
    local folder found=
    {
        [ -z "${MILLRACE_POSTGRES_BIN:-}" ] || printf '%s\n' "$MILLRACE_POSTGRES_BIN"
        # Client packages bring a pg_config too, so the folder that it names is only a candidate.
        pg_config --bindir 2>/dev/null || true
        printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin | sort -Vr
        printf '%s\n' /opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin /usr/local/pgsql/bin | sort -Vr
        dirname "$(command -v initdb || true)"
    } | while IFS= read -r folder; do
        # Reads on after the first, so that nobody writes into a closed pipe.
        if [ -z "$found" ] && [ -x "$folder/initdb" ] && [ -x "$folder/pg_ctl" ] && [ -x "$folder/postgres" ]; then
            printf '%s\n' "$folder"
            found=yes
        fi
    done
}

# Installs Debian's package, told not to make or start the cluster that it would make otherwise.
install_binaries() {
    local apt=(apt-get -qq -y -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 --no-install-recommends)
    say "PostgreSQL is not installed: installing Debian's package"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update >&2 || say "apt-get update failed; going on with the lists there are"
    "${apt[@]}" install postgresql-common >&2
    # The last line of a setting wins.
    echo 'create_main_cluster = false' >>/etc/postgresql-common/createcluster.conf
    "${apt[@]}" install postgresql >&2
}

bin=$(find_binaries)
if [ -z "$bin" ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    install_binaries || die "could not install PostgreSQL; install the package \`postgresql\` (15 or later) by hand"
    bin=$(find_binaries)
fi
[ -n "$bin" ] || die "found no PostgreSQL server (initdb, pg_ctl): install the package \`postgresql\` (15 or later) or set MILLRACE_POSTGRES_BIN"

# ── Who runs it ─────────────────────────────────────────────────────────────────────────────────────────────────────

# PostgreSQL refuses to run as root, so root gives it to a user that owns nothing else of the tests.
as_server=()
owner=$(id -un)
if [ "$(id -u)" -eq 0 ]; then
    owner=nobody
    if id postgres >/dev/null 2>&1; then owner=postgres; fi
    if command -v setpriv >/dev/null; then
        as_server=(setpriv --reuid="$owner" --regid="$(id -g "$owner")" --clear-groups)
    elif command -v runuser >/dev/null; then
        as_server=(runuser -u "$owner" --)
    else
        die "root needs setpriv or runuser to start PostgreSQL as another user"
    fi
fi

# ── Its life ────────────────────────────────────────────────────────────────────────────────────────────────────────

folder=$(mktemp -d "${TMPDIR:-/tmp}/millrace-postgres.XXXXXX")
data=$folder/data
log=$folder/log
command_pid=

# The server's own commands run here: its user need not be able to enter the folder in which the caller stands.
server() { (cd "$folder" && HOME=$folder "${as_server[@]}" "$@"); }

cleanup() {
    local code=$?
    trap '' INT TERM
    trap - EXIT
    if [ -n "$command_pid" ] && kill -0 -- "-$command_pid" 2>/dev/null; then
        kill -TERM -- "-$command_pid" 2>/dev/null || true
        wait "$command_pid" 2>/dev/null || true
    fi
    if [ -f "$data/postmaster.pid" ]; then
        server "$bin/pg_ctl" -D "$data" -m immediate -w -t 30 stop >/dev/null 2>&1 || say "could not stop the server in $data"
    fi
    rm -rf "$folder"
    exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

chmod 700 "$folder"
: >"$log"
if [ "$(id -u)" -eq 0 ]; then chown -R "$owner" "$folder"; fi

# Linguistic order of text where the build has it, as most installations have: what depends on the order of bytes must
# say so itself, and tests show when it does not.
locale=(--locale=C --encoding=UTF8)
if server "$bin/initdb" --help | grep -q -- --icu-locale; then
    locale=(--locale=C --encoding=UTF8 --locale-provider=icu --icu-locale=en)
fi
initdb() {
    server "$bin/initdb" -D "$data" -U postgres --auth=trust --no-sync "$@" >"$log" 2>&1
}
if ! initdb "${locale[@]}"; then
    # A build without ICU knows the option and refuses it.
    rm -rf "$data"
    initdb --locale=C --encoding=UTF8 || { cat "$log" >&2; die "initdb failed"; }
fi
cat >>"$data/postgresql.conf" <<SETTINGS
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
SETTINGS

# A port that nobody listens on may be taken before the server has it, so a start that fails for that is tried again
# with another. The ports lie below those that systems give to outgoing connections.
port=
for _ in $(seq 1 20); do
    candidate=$((15000 + (RANDOM * 32768 + RANDOM) % 17000))
    if (exec 3<>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null; then continue; fi
    if server "$bin/pg_ctl" -D "$data" -l "$log" -o "-p $candidate" -w -t 60 start >/dev/null 2>&1; then
        port=$candidate
        break
    fi
    grep -q 'could not bind\|already in use' "$log" || break
    : >"$log"
done
[ -n "$port" ] || { cat "$log" >&2; die "PostgreSQL did not start"; }

export MILLRACE_TEST_POSTGRES="postgres://postgres@127.0.0.1:$port/postgres"

# ── The command ─────────────────────────────────────────────────────────────────────────────────────────────────────

# In the background, so that a signal is answered while it runs, and in a process group of its own, so that what it has
# started ends with it.
set -m
"$@" <&0 &
command_pid=$!
set +m
code=0
wait "$command_pid" || code=$?
if [ "$code" -ne 0 ] && grep -q 'PANIC\|terminated by signal' "$log"; then
    say "the server crashed:"
    tail -n 40 "$log" >&2
fi
exit "$code"
