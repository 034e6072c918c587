# What gpt2.sh and texts.sh share: fetching a file so that what stands under its name is whole and checked.
# They read it with "."; it does nothing by itself.

die() { echo "error: $*" >&2; exit 1; }

sha256_of() {
    if command -v sha256sum >/dev/null; then sha256sum <"$1" | cut -d' ' -f1
    elif command -v shasum >/dev/null; then shasum -a 256 <"$1" | cut -d' ' -f1
    elif command -v openssl >/dev/null; then openssl dgst -sha256 <"$1" | sed 's/.*= //'
    else die "no program computes sha256; install sha256sum, shasum or openssl"
    fi
}

# fetch URL FILE [SHA256]
#
# The bytes gather in FILE.part, where a download that was cut goes on; it becomes FILE when its checksum is
# right. Where no checksum is known here, the first download's is kept in FILE.sha256, in the form that
# `sha256sum -c` reads: it cannot tell that this download was right, but it can that a later one differs.
fetch() {
    local url=$1 file=$2 expected=${3:-} part=$2.part record=$2.sha256 folder actual=
    folder=$(dirname "$file")
    [ -n "$expected" ] || [ ! -f "$record" ] || expected=$(cut -d' ' -f1 <"$record")
    if [ -e "$file" ]; then
        actual=$(sha256_of "$file") || exit 1
        [ "$actual" = "${expected:-$actual}" ] || die "$file: not what was downloaded; remove it, run again"
        echo "$file: there already"
        return
    fi
    mkdir -p "$folder" 2>/dev/null || die "$folder: this folder cannot be made; choose another"
    if [ -f "$part" ]; then actual=$(sha256_of "$part") || exit 1; fi
    if [ -z "$actual" ] || [ "$actual" != "$expected" ]; then
        echo "$file: from $url"
        download "$url" "$part"
        actual=$(sha256_of "$part") || exit 1
    fi
    if [ "$actual" != "${expected:-$actual}" ]; then
        rm -f "$part"
        die "$url: sha256 $actual, not $expected: removed; run again, or look for another source"
    fi
    [ -n "$expected" ] || echo "$actual  $(basename "$file")" >"$record" || die "$record: no room; make some"
    mv "$part" "$file" || die "$file: cannot be written; choose another folder"
}

# download URL PART: with whichever program is there, on from what PART has. Leaves no empty PART behind.
download() {
    local status
    if command -v curl >/dev/null; then download_with_curl "$1" "$2"; status=$?
    elif command -v wget >/dev/null; then download_with_wget "$1" "$2"; status=$?
    else die "neither curl nor wget is there; install one of them"
    fi
    [ $status = 0 ] && [ -f "$2" ] && return
    [ -s "$2" ] || rm -f "$2"
    [ $status = "$no_room" ] && die "$2: no room left, or it may not be written; make room, and run again to go on"
    [ $status = "$refused" ] && die "$1: the server refuses it${answer:+ ($answer)}; look for another source"
    [ -f "$2" ] && die "$1: cut off after $(($(wc -c <"$2"))) bytes; run again to go on"
    die "$1: the server cannot be reached; check the network, and run again"
}
no_room=100 refused=101

download_with_curl() {
    local quiet=--silent status
    [ -t 2 ] && quiet=--progress-bar
    # A connection that gives nothing for a minute is as good as cut.
    answer=$(curl $quiet --fail --location --connect-timeout 30 --speed-limit 1 --speed-time 60 \
                  --continue-at - --output "$2" --write-out '%{http_code}' "$1")
    status=$?
    # The server cannot begin in the middle (33), or has nothing behind the part (416): from the beginning.
    if [ -f "$2" ] && { [ $status = 33 ] || [ "$answer" = 416 ]; }; then
        rm -f "$2"
        download_with_curl "$1" "$2"
        return
    fi
    case $status in
    22) return $refused ;;
    23) return $no_room ;;
    esac
    return $status
}

download_with_wget() {
    local quiet=--quiet
    [ -t 2 ] && wget --help | grep -q -e --show-progress && quiet="--quiet --show-progress"
    answer=
    wget $quiet --continue --tries=1 --timeout=60 --output-document="$2" "$1"
    case $? in
    0) return 0 ;;
    3) return $no_room ;;
    8) return $refused ;;
    *) return 1 ;;
    esac
}
