# shellcheck shell=sh
# Sourced by tools/run and tools/test with the repository's root as the working directory.

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# Prints the first Python that is new enough; 3.14 comes late because packages take a while to follow.
find_python() {
    for name in python3.13 python3.12 python3.11 python3.14 python3 python; do
        # Run, not only looked up: a version manager's stand-in may have nothing behind it.
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return 0
        fi
    done
    say "no Python 3.11 or newer found; install one (Debian 12, Ubuntu 24.04: apt-get install python3 python3-venv)"
    return 1
}

# What an installation was made from. The root is part of it because scripts in a virtual environment name it.
fingerprint() {
    pwd
    cksum <pyproject.toml
}

# is_current KIND: whether the installation of that kind ended well, here, from this pyproject.toml.
is_current() {
    [ -x .venv/bin/python ] && [ -f ".venv/.installed-$1" ] && [ "$(fingerprint)" = "$(cat ".venv/.installed-$1")" ]
}

# quickly REQUIREMENT: with uv, in a third of pip's time. It reads none of pip's settings: who has another index has pip.
quickly() {
    ! .venv/bin/python -m pip config list | grep -q index-url || return 1
    .venv/bin/python -m pip install --quiet uv && .venv/bin/uv pip install --quiet --python .venv/bin/python --editable "$1"
}

# install KIND REQUIREMENT: .venv is made anew unless a whole one is there, and marked only when all went well.
install() {
    is_current "$1" && return 0
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1 || [ "$(cat .venv/.root 2>/dev/null)" != "$PWD" ]; then
        python=$(find_python) || return 1
        say "making .venv with $python"
        if ! "$python" -m venv --clear .venv; then
            say "'$python -m venv' failed; on Debian and Ubuntu it needs the package python3-venv"
            return 1
        fi
        pwd >.venv/.root
    fi
    say "installing $2 (once)"
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
    { [ "$1" = test ] && quickly "$2"; } || .venv/bin/python -m pip install --quiet --editable "$2" || return 1
    fingerprint >".venv/.installed-$1"
}

# ensure_venv KIND REQUIREMENT: install, one process at a time where the system has flock.
ensure_venv() {
    is_current "$1" && return 0
    if command -v flock >/dev/null 2>&1; then
        (flock 9 && install "$1" "$2") 9>.venv.lock
    else
        install "$1" "$2"
    fi
}
