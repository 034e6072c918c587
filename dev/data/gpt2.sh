#!/usr/bin/env bash
# Fetches GPT-2 from Hugging Face: a folder for --model and --teacher, and the merges for --tokenizer gpt2.
# usage: dev/data/gpt2.sh [124M|355M|distilgpt2] [DIR]
#   DIR gets config.json, model.safetensors, vocab.json, merges.txt, and vocab.bpe: the merges under OpenAI's
#   name. It is data/gpt2-124M, data/gpt2-355M or data/distilgpt2 unless given.
#   GPT2_BASE_URL    in place of https://huggingface.co: a mirror
# A download that was cut goes on where it stopped when the script is run again.
. "$(dirname "$0")/fetch.sh"

name=${1:-124M}
# Revisions are fixed, so that a name means the same bytes forever. The checksums are those that several
# projects have published for them; where we know none for certain, fetch.sh keeps that of the first download.
case $name in
124M)
    repository=openai-community/gpt2 revision=607a30d783dfa663caf39e06633721c8d4cfcd7e folder=gpt2-124M
    config=0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4
    model=248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707 ;;
355M)
    repository=openai-community/gpt2-medium revision=6dcaa7a952f72f9298047fd5137cd6e4f05f41da folder=gpt2-355M
    config=
    model=fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd ;;
distilgpt2)
    repository=distilbert/distilgpt2 revision=2290a62682d06624634c1f46a6ad5be0f47f38aa folder=distilgpt2
    config=4ec5947c1d59fee6212cdf3b0ec1a53eac02092554c5ff0a733488cbd2c64f3a
    model=e1ff18884359fe8beb795a5f414feb85a6ce3d929ad019c0d958c039d2b94a1b ;;
-h|--help)
    sed -n '2,/^[^#]/s/^# //p' "$0"
    exit 0 ;;
*)
    echo "error: $name: no such model; it is 124M, 355M or distilgpt2" >&2
    exit 2 ;;
esac
# All three share one tokenizer.
vocab=196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783
merges=1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5

folder=${2:-data/$folder}
base=${GPT2_BASE_URL:-https://huggingface.co}/$repository/resolve/$revision
fetch "$base/merges.txt" "$folder/merges.txt" $merges
cp "$folder/merges.txt" "$folder/vocab.bpe.part" && mv "$folder/vocab.bpe.part" "$folder/vocab.bpe" ||
    die "$folder/vocab.bpe: cannot be written; make room"
fetch "$base/vocab.json" "$folder/vocab.json" $vocab
fetch "$base/config.json" "$folder/config.json" $config
fetch "$base/model.safetensors" "$folder/model.safetensors" $model
echo "$folder: ready"
