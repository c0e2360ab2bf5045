# Answers each line that comes through the queue. A fifo stands in for a socket, which sh does not have.
answered=0

answer() {
    answered=$((answered + 1))
    echo "answered: $1"
}

# Opened for reading and writing: no end of file when a client leaves.
exec 3<>.data/queue
# The end queues up as well: what was asked before the signal came is answered first.
trap 'echo end >&3' TERM INT HUP
echo "the queue is open"
while :; do
    # A signal interrupts the reading, and nothing was read then.
    read -r question <&3 || continue
    [ "$question" = end ] && break
    answer "$question"
done
echo "the queue is closed after $answered answers"
rm -f .data/queue
