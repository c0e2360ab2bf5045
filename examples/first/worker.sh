# Asks the server something every second.
ask() {
    echo "$1" >.data/queue
    echo "asked: $1"
}

finish() {
    ask "goodbye"
    exit 0
}
trap finish TERM INT HUP

number=0
while :; do
    number=$((number + 1))
    ask "question $number"
    # In the background, so that a signal is noticed at once and not when the second is over.
    sleep 1 &
    wait $!
done
