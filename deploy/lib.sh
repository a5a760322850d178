# Shared by deploy/quickstart and test/run: packages, guest parts, builds. Sourced, not run.
# shellcheck shell=bash

ASPIS_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
GUEST_DIR=${ASPIS_GUEST:-/var/cache/aspis/guest}

step() { printf '\n==> %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

need_root() {
    [[ $(id -u) == 0 ]] || die "this must run as root: sudo $0"
}

# install_packages GROUP...: what is missing of the groups in deploy/packages.
install_packages() {
    local group missing=()
    for group in "$@"; do
        while read -r name; do
            dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
        done < <(awk -v g="$group" '$1 == g { print $2 }' "$ASPIS_ROOT/deploy/packages")
    done
    if ((${#missing[@]} == 0)); then
        echo "all packages are installed"
        return
    fi
    echo "installing: ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get update -q >/dev/null
    # a daemon that a package would start is not what anybody asked for here
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -q -y --no-install-recommends "${missing[@]}" \
        >/tmp/aspis-apt.log 2>&1 || { tail -n 20 /tmp/aspis-apt.log >&2; die "apt-get install failed"; }
}

# build DIR [meson options]: configures, or brings the options of what is there up to date, then builds.
build() {
    local dir=$1
    shift
    if [[ ! -f $dir/build.ninja ]]; then
        meson setup "$dir" "$ASPIS_ROOT" -Dlibcrun="$GUEST_DIR/crun" "$@" >"/tmp/aspis-meson-$$.log" 2>&1 ||
            { tail -n 30 "/tmp/aspis-meson-$$.log" >&2; die "meson setup $dir failed"; }
        rm -f "/tmp/aspis-meson-$$.log"
    elif (($# > 0)); then
        meson setup --reconfigure "$dir" "$ASPIS_ROOT" "$@" >/dev/null || die "meson setup $dir failed"
    fi
    ninja -C "$dir" >"/tmp/aspis-ninja-$$.log" 2>&1 ||
        { grep -vE '^\[|^ninja:' "/tmp/aspis-ninja-$$.log" | tail -n 40 >&2; die "build of $dir failed"; }
    rm -f "/tmp/aspis-ninja-$$.log"
}
