# Tells the time, and needs a moment at the end.
finish() {
    echo "stopping the clock"
    sleep 0.5
    echo "the clock has stopped"
    exit 0
}
trap finish TERM INT HUP

while :; do
    date +%H:%M:%S
    sleep 1 &
    wait $!
done
