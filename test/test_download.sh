#!/usr/bin/env bash
# dev/data/gpt2.sh and dev/data/texts.sh against a server on this machine; the network is never asked. Needs python3, and
# curl or wget or both.
set -u
. "$(dirname "$0")/lib.sh"
data=$(unset CDPATH && cd "$(dirname "$0")/../dev/data" && pwd) || exit 1
command -v python3 >/dev/null || { skip "no python3 for the server"; finish; exit; }

# A server that knows ranges. Below /cut it drops a program's first connection for a file in the middle; below
# /whole it knows no ranges. $work/log has a line for each request: the path and the range asked for.
cat >"$work/server.py" <<'PYTHON'
import http.server, os, re, sys
root, log = sys.argv[1], sys.argv[2]
cut_before = set()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = self.headers.get("Range")
        with open(log, "a") as f: print(self.path, wanted, file=f)
        mode, path = re.fullmatch("/(cut|whole|good)(/.*)", self.path).groups()
        if not os.path.isfile(root + path): return self.send_error(404)
        body = open(root + path, "rb").read()
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted).group(1)) if wanted and mode != "whole" else None
        if start is not None and start >= len(body): return self.send_error(416)
        self.send_response(200 if start is None else 206)
        if start is not None: self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        body = body[start or 0:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        visitor = path, self.headers.get("User-Agent")
        if mode == "cut" and visitor not in cut_before:
            cut_before.add(visitor)
            body = body[:len(body) // 2]
        self.wfile.write(body)
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
PYTHON
mkdir "$work/root"
python3 "$work/server.py" "$work/root" "$work/log" >"$work/port" &
server=$!
trap 'kill $server; rm -rf "$work"' EXIT
await [ -s "$work/port" ]
port=$(cat "$work/port")
[ -n "$port" ] || { echo "FAILED: the server does not start"; failed=1; finish; exit; }
url=http://127.0.0.1:$port
export no_proxy=127.0.0.1

# What the server has: two texts, and a model whose files claim the checksums that gpt2.sh asks for, since the
# true ones are too large for a test; $work/claims/sha256sum believes them.
stories=$work/root/datasets/roneneldan/TinyStories/resolve/main
mkdir -p "$stories" "$work/claims"
head -c 300000 /dev/urandom >"$stories/TinyStories-train.txt"
head -c 2000 /dev/urandom >"$stories/TinyStories-valid.txt"
variable() { sed -n "s/^ *\($1=[0-9a-f]*\).*/\1/p" "$data/gpt2.sh" | head -n "$2" | tail -n 1 | cut -d= -f2; }
model=$work/root/distilbert/distilgpt2/resolve/2290a62682d06624634c1f46a6ad5be0f47f38aa
mkdir -p "$model"
echo "claims $(variable merges 1)" >"$model/merges.txt"
echo "claims $(variable vocab 1)" >"$model/vocab.json"
echo "claims $(variable config 3)" >"$model/config.json"
echo "claims $(variable model 3)" >"$model/model.safetensors"
cat >"$work/claims/sha256sum" <<'CLAIMS'
#!/usr/bin/env bash
read -r word sum
[ "$word" = claims ] && echo "$sum  -" || echo "0000  -"
CLAIMS
chmod +x "$work/claims/sha256sum"

# one line on stderr that begins with "error: " and has these words, and this exit status
refused() { [ "$status" = "$1" ] && [ "$(wc -l <"$work/err")" -eq 1 ] && grep -q "^error: .*$2" "$work/err"; }
run() { "$@" >"$work/out" 2>"$work/err"; status=$?; }
nothing_in() { [ -z "$(ls -A "$1" 2>/dev/null)" ]; }

run "$data/texts.sh" nonesuch "$work/none"
ok "an unknown text" refused 2 "nonesuch: no such text"
run "$data/texts.sh"
ok "no text" refused 2 "no name: no such text"
run "$data/gpt2.sh" 1558M "$work/none"
ok "an unknown model" refused 2 "1558M: no such model"
ok "nothing is made for them" [ ! -e "$work/none" ]
ok "texts.sh --help" eval '"$data/texts.sh" --help | grep -q TEXTS_BASE_URL'
ok "gpt2.sh --help" eval '"$data/gpt2.sh" --help | grep -q GPT2_BASE_URL'

# A folder with the programs that the scripts use, and of curl and wget at most the one under test.
programs() {
    mkdir "$work/bin-$1"
    for program in bash basename cp cut dirname grep mkdir mv rm sed sha256sum shasum openssl wc "$1"; do
        ! command -v $program >/dev/null || ln -s "$(command -v $program)" "$work/bin-$1/"
    done
}
programs neither
run env PATH="$work/bin-neither" TEXTS_BASE_URL=$url/good "$data/texts.sh" tinystories "$work/neither"
ok "neither curl nor wget" refused 1 "neither curl nor wget"

for tool in curl wget; do
    if ! command -v $tool >/dev/null; then skip "no $tool"; continue; fi
    programs $tool
    texts() { run env PATH="$work/bin-$tool" TEXTS_BASE_URL="$1" "$data/texts.sh" "${@:2}"; }
    models() { run env PATH="$work/claims:$work/bin-$tool" GPT2_BASE_URL="$1" "$data/gpt2.sh" "${@:2}"; }

    dir=$work/$tool/stories
    texts $url/good tinystories "$dir"
    ok "$tool: downloads" [ $status = 0 ]
    ok "$tool: the whole file" cmp -s "$stories/TinyStories-train.txt" "$dir/tinystories-train.txt"
    ok "$tool: and the next" cmp -s "$stories/TinyStories-valid.txt" "$dir/tinystories-valid.txt"
    ok "$tool: nothing else but checksums" [ "$(ls "$dir" | wc -l)" -eq 4 ]
    ok "$tool: which are right" eval '(cd "$dir" && sha256sum -c --quiet *.sha256)'
    : >"$work/log"
    texts $url/good tinystories "$dir"
    ok "$tool: what is there is not asked for again" eval '[ $status = 0 ] && [ ! -s "$work/log" ]'
    echo changed >>"$dir/tinystories-valid.txt"
    texts $url/good tinystories "$dir"
    ok "$tool: a file that was changed since" refused 1 "tinystories-valid.txt: not what was downloaded"
    rm "$dir/tinystories-valid.txt"
    sed -i.old 's/^..../0000/' "$dir/tinystories-valid.txt.sha256"
    texts $url/good tinystories "$dir"
    ok "$tool: a download that differs from the first" refused 1 "TinyStories-valid.txt: sha256 .* removed"
    ok "$tool: is removed" eval '! ls "$dir"/tinystories-valid.txt "$dir"/*.part >/dev/null 2>&1'

    dir=$work/$tool/cut
    : >"$work/log"
    texts $url/cut tinystories "$dir"
    ok "$tool: a download that is cut" refused 1 "cut off after 150000 bytes; run again"
    ok "$tool: leaves its part and nothing else" [ "$(ls "$dir")" = tinystories-train.txt.part ]
    texts $url/good tinystories "$dir"
    ok "$tool: goes on when run again" [ $status = 0 ]
    ok "$tool: from where it was" grep -q "/good/.*train.txt bytes=150000-" "$work/log"
    ok "$tool: and is whole" cmp -s "$stories/TinyStories-train.txt" "$dir/tinystories-train.txt"

    dir=$work/$tool/model
    models $url/good distilgpt2 "$dir"
    ok "$tool: a model" [ $status = 0 ]
    for file in merges.txt vocab.json config.json model.safetensors; do
        ok "$tool: its $file" cmp -s "$model/$file" "$dir/$file"
    done
    ok "$tool: its vocab.bpe is its merges.txt" cmp -s "$model/merges.txt" "$dir/vocab.bpe"
    ok "$tool: and nothing else" [ "$(ls "$dir" | wc -l)" -eq 5 ]
    for each in "124M openai-community/gpt2 1" "355M openai-community/gpt2-medium 2"; do
        read -r name repository n <<<"$each"
        from=$work/root/$repository/resolve/$(sed -n "s|.*=$repository revision=\([0-9a-f]*\).*|\1|p" "$data/gpt2.sh")
        sum=$(variable config $n)
        mkdir -p "$from" "$work/$tool/here" && cp "$model"/{merges.txt,vocab.json} "$from"
        echo "claims ${sum:-1234}" >"$from/config.json" && echo "claims $(variable model $n)" >"$from/model.safetensors"
        cd "$work/$tool/here" && models $url/good $name
        cd "$OLDPWD" || exit 1
        ok "$tool: $name" cmp -s "$from/model.safetensors" "$work/$tool/here/data/gpt2-$name/model.safetensors"
    done
    run env PATH="$work/bin-$tool" GPT2_BASE_URL=$url/good "$data/gpt2.sh" distilgpt2 "$work/$tool/wrong"
    ok "$tool: a wrong checksum" refused 1 "merges.txt: sha256 .*, not $(variable merges 1): removed"
    ok "$tool: leaves nothing" nothing_in "$work/$tool/wrong"

    texts $url/good wikitext-2 "$work/$tool/missing"
    ok "$tool: a file that the server has not" refused 1 "train.txt: the server refuses it"
    ok "$tool: leaves nothing there" nothing_in "$work/$tool/missing"
    texts http://127.0.0.1:1 tinyshakespeare "$work/$tool/dead"
    ok "$tool: a server that is not there" refused 1 "the server cannot be reached; check the network"
    ok "$tool: leaves nothing of it" nothing_in "$work/$tool/dead"
    : >"$work/$tool/file"
    texts $url/good tinystories "$work/$tool/file/folder"
    ok "$tool: a folder that cannot be made" refused 1 "cannot be made"
done

# A server that cannot begin in the middle: curl says so, and the download begins again.
if command -v curl >/dev/null; then
    mkdir "$work/again"
    head -c 1000 "$stories/TinyStories-train.txt" >"$work/again/tinystories-train.txt.part"
    tool=curl
    texts $url/whole tinystories "$work/again"
    ok "a server without ranges" cmp -s "$stories/TinyStories-train.txt" "$work/again/tinystories-train.txt"
fi
finish
