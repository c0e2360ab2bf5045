# Answers each line that comes through the queue. A fifo stands in for a socket, which sh does not have.
answered=0

answer() {
    answered=$((answered + 1))
    echo "answered: $1"
}

# What was asked before the signal came is answered first.
finish() {
    echo "end" >&3
    while read -r question <&3 && [ "$question" != "end" ]; do
        answer "$question"
    done
    echo "the queue is closed after $answered answers"
    rm -f .data/queue
    exit 0
}
trap finish TERM INT HUP

# Open for reading and writing: no end of file when a client leaves.
exec 3<>.data/queue
echo "the queue is open"
while :; do
    if read -r question <&3; then
        answer "$question"
    fi
done
