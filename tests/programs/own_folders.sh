# Runs a command with a temporary folder and a /dev/shm of its own.
for each in "$TMPDIR" /dev/shm; do
    mount -t tmpfs tmpfs "$each" || exit 1
done
exec "$@"
