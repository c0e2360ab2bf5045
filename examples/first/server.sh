# Answers each line that comes through the queue. A fifo stands in for a socket, which sh does not have.
answered=0

finish() {
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
        answered=$((answered + 1))
        echo "answered: $question"
    fi
done
