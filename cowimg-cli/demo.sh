#!/usr/bin/env bash
# The program at work on a disk with a real file system, with qemu-img and e2fsck as judges of every step.
#
# Prints each command before its output, works in a temporary folder, and ends with an error at the first step on
# which the two programs disagree. `make demo` builds the program and runs this.
set -Eeuo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

cowimg_path=${COWIMG:?set COWIMG to the program, or run: make demo}
cowimg() { "$cowimg_path" "$@"; }
project=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'echo; echo "demo: FAILED in line $LINENO: $BASH_COMMAND" >&2' ERR
cd "$work"

heading() { printf '\n=== %s\n' "$*"; }
# Shows a command as a person would type it, and runs it.
run() {
    printf '\n$ %s\n' "$1"
    eval "$1"
}

# Real files, some tens of megabytes of them: the first of these folders that has them, else the project's own.
files() {
    local folder size
    for folder in /usr/share/perl /usr/share/doc /usr/share/man /usr/include; do
        size=$(du -sm "$folder" 2>/dev/null | cut -f1)
        if [ "${size:-0}" -ge 10 ] && [ "$size" -lt 200 ]; then
            echo "$folder"
            return
        fi
    done
    echo "$project/cowimg"
}

heading "A base: a disk with an ext4 file system and real files in it"
folder=$(files)
run "truncate -s $(($(du -sm "$folder" | cut -f1) + 32))M base.img"
run "mkfs.ext4 -q -d $folder base.img"
run 'sha256sum base.img | tee base.sha256'

heading "A child of it. Its size and its base's format need not be said"
run 'cowimg create -b base.img child.qcow2'
run 'cowimg info child.qcow2'
run 'diff <(cowimg info child.qcow2) <(qemu-img info child.qcow2) && echo same as qemu-img info'

heading "What a guest would do: a new file appears in the file system"
# No machine runs here, so debugfs changes a copy, and the blocks that it changed are written through the child.
run 'cowimg convert -O raw child.qcow2 guest.raw'
run 'echo "written after the fork" > note.txt'
run 'debugfs -w -R "write note.txt note.txt" guest.raw 2>/dev/null'
blocks=$(cmp -l base.img guest.raw | awk '{ print int(($1 - 1) / 4096) }' | uniq || true)
echo
echo "debugfs changed the 4 KiB blocks" $blocks "- each goes into the child:"
for block in $blocks; do
    command="cowimg write child.qcow2 $((block * 4096)) --from block"
    dd if=guest.raw of=block bs=4096 skip="$block" count=1 status=none
    echo "\$ $command"
    $command
done

heading "The child holds the change, the base is what it was"
run 'sha256sum -c base.sha256'
run 'qemu-img compare child.qcow2 guest.raw'
run 'cowimg check child.qcow2'
run 'qemu-img check child.qcow2'
run 'cowimg map child.qcow2 | sed -n 1,8p'
run 'diff <(cowimg map child.qcow2) <(qemu-img map child.qcow2) && echo same as qemu-img map'

heading "Grown by 64 MiB"
run 'cowimg resize child.qcow2 +64M'
run "qemu-img info child.qcow2 | grep 'virtual size'"
run 'qemu-img check child.qcow2'

heading "Flattened into one qcow2 file, into one compressed, and into a raw disk"
run 'cowimg convert -O qcow2 child.qcow2 flat.qcow2'
run 'cowimg convert -O qcow2 -c child.qcow2 small.qcow2'
run 'cowimg convert -O raw child.qcow2 flat.raw'
run 'du -h --apparent-size flat.qcow2 small.qcow2 flat.raw'
run 'du -h flat.qcow2 small.qcow2 flat.raw'
for image in flat.qcow2 small.qcow2; do
    run "qemu-img compare child.qcow2 $image"
    run "qemu-img check $image"
done
run 'qemu-img convert -O raw child.qcow2 by-qemu.raw && cmp flat.raw by-qemu.raw && echo the same bytes'

heading "The file system is sound, and the new file is in it"
run 'e2fsck -fn flat.raw 2>&1'
run 'debugfs -R "cat note.txt" flat.raw 2>/dev/null | tee note.read && cmp note.txt note.read'

printf '\nEvery step agrees with qemu-img. The base is still: '
sha256sum -c base.sha256
