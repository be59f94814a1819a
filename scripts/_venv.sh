# Sourced by run, test, check and lock: finds a Python and keeps .venv at what the lock files say.
# bash 3.2 and no GNU-only tools (macOS). Needs $root, the checkout. Talks on stderr only, and only when something is slow.
#
# The package itself is not pip-installed: that would need setuptools, which no lock carries and newer venvs lack. A
# relative .pth and a three-line script do the same, and survive moving the checkout.

say() { printf '%s\n' "$*" >&2; }

usable_python() { # is "$1" a Python >= 3.11 that can make a venv with pip in it?
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() { # prints the first usable Python; fails if there is none
    for candidate in python3 python3.13 python3.12 python3.11; do
        if usable_python "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

no_python() { # says the one line that installs a Python, then exits 69 (EX_UNAVAILABLE)
    sudo="sudo "
    [ "$(id -u)" != 0 ] || sudo=""
    say "No Python >= 3.11 with venv and ensurepip found (tried python3, python3.13, python3.12, python3.11). Install it with:"
    if command -v apt-get >/dev/null 2>&1; then
        packages="python3 python3-venv"
        # A Python that is there but too old (Ubuntu 22.04): ask for the newer one by its name.
        if python3 -c 'import sys; sys.exit(sys.version_info >= (3, 11))' >/dev/null 2>&1; then packages=python3.11-venv; fi
        say "  ${sudo}apt-get update && ${sudo}apt-get install -y $packages"
    elif command -v dnf >/dev/null 2>&1; then
        say "  ${sudo}dnf install -y python3.12"
    elif command -v apk >/dev/null 2>&1; then
        say "  ${sudo}apk add python3"
    elif [ "$(uname -s)" = Darwin ]; then
        say "  brew install python@3.12"
    else
        say "  (your system's package manager) python3.12 python3.12-venv"
    fi
    exit 69
}

venv_works() { "$root/.venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# The stamps are copies of the lock files as installed, written last: an interrupted install leaves none.
stamp_of() { printf '%s' "$root/.venv/installed-$1"; }
stamped() { cmp -s "$root/$1" "$(stamp_of "$1")"; }
outdated() { [ -e "$(stamp_of "$1")" ] && ! stamped "$1"; }

make_venv() {
    python=$(find_python) || no_python
    say "making .venv with $("$python" --version 2>&1) ($python) …"
    rm -rf "$root/.venv"
    "$python" -m venv "$root/.venv"
}

install_lock() {
    say "installing the locked packages …"
    "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
        -r "$root/$1" >&2 || {
        say "Installing $1 failed, so .venv is incomplete. Without network? Reach a package index once, then run this again."
        exit 69
    }
}

link_package() { # makes `import dispatcher` and .venv/bin/dispatcher work
    site=$("$root/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # Relative to site-packages: .venv/lib/pythonX.Y/site-packages.
    printf '../../../..\n' >"$site/ai_model_dispatcher.pth"
    # -P: the caller's working directory must not shadow our imports (a folder named docker/ is common enough).
    cat >"$root/.venv/bin/dispatcher" <<'SCRIPT'
#!/bin/sh
self=$0
while [ -L "$self" ]; do
    link=$(readlink "$self")
    case $link in /*) self=$link ;; *) self=$(dirname "$self")/$link ;; esac
done
exec "$(dirname "$self")/python" -P -m dispatcher "$@"
SCRIPT
    chmod +x "$root/.venv/bin/dispatcher"
}

ensure_venv() { # "$1": requirements.lock, or requirements-dev.lock, which contains the former
    if venv_works && stamped "$1"; then return 0; fi
    lock=$1
    # Where the tests were set up, they stay: scripts/run after a changed lock must not take their packages away.
    [ ! -e "$(stamp_of requirements-dev.lock)" ] || lock=requirements-dev.lock
    # A changed lock means a new environment (nothing stale stays behind). One without a stamp was made by hand or
    # interrupted: it is brought to the lock, not thrown away.
    if ! venv_works || outdated requirements.lock || outdated requirements-dev.lock; then make_venv; fi
    install_lock "$lock"
    link_package
    cp "$root/requirements.lock" "$(stamp_of requirements.lock)"
    [ "$lock" = requirements.lock ] || cp "$root/$lock" "$(stamp_of "$lock")"
}

on_debian_as_root() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 && command -v dpkg-query >/dev/null 2>&1; }

installed_package() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

# Installs what is missing of "$@". The packages' services stay down: a policy for the time of the installation says so,
# because a test machine's init must not start a Prometheus or a dockerd of its own.
install_packages() {
    missing=""
    for package in "$@"; do installed_package "$package" || missing="$missing $package"; done
    [ -n "$missing" ] || return 0
    say "installing Debian packages:$missing …"
    policy=""
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    # shellcheck disable=SC2086  # one word per package
    apt_said=$({ apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing; } 2>&1) || {
        printf '%s\n' "$apt_said" | tail -n 20 >&2
        say "These Debian packages could not be installed:$missing"
    }
    if [ -n "$policy" ]; then rm -f "$policy"; trap - EXIT; fi
}

ensure_dev_venv() { # as ensure_venv, and as root on Debian it brings the Python as well
    if ! venv_works && on_debian_as_root && ! find_python >/dev/null; then install_packages python3 python3-venv; fi
    ensure_venv requirements-dev.lock
}
