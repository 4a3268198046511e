#!/usr/bin/env bash
# Fetches the viewer again, and stops if one byte differs from what stands here. For a new version, change both lines
# below, then SHA256SUMS and LICENSES.txt, and look at the page before it goes in.
set -euo pipefail
version=0.69.0
archive_sha256=6e9a6a471b428eb3b258a0086beca9187d95e43a781a39e8a519c6da246af485
cd "$(dirname "$0")"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder" && npm pack --silent "@niivue/niivue@$version" >/dev/null)
archive="$folder/niivue-niivue-$version.tgz"
echo "$archive_sha256  $archive" | sha256sum --check --quiet
tar --extract --gzip --to-stdout --file "$archive" package/dist/niivue.umd.js >"$folder/niivue-$version.umd.js"
(cd "$folder" && sha256sum --check --quiet) <SHA256SUMS
mv "$folder/niivue-$version.umd.js" .
echo "niivue-$version.umd.js: as pinned"
