# Serves commands on the second serial port, one request a line:
#
#	P nonce          are you there      -> RPA nonce
#	X nonce base64   run this script    -> RPX nonce status base64(output)
#
# Each script runs by itself: one that hangs doesn't hold up the next one.
# Whatever else comes along, kernel messages or echoes, is ignored by both sides.
[ -c /dev/ttyS1 ] || exit 0
exec </dev/ttyS1 >/dev/ttyS1 2>/dev/console
stty raw -echo -echoe -echok
run() {
	echo "$2" | base64 -d >"/tmp/script.$1"
	sh "/tmp/script.$1" </dev/null >"/tmp/output.$1" 2>&1
	status=$?
	# One line, one write: answers don't mix.
	printf '\nRPX %s %s %s\n' "$1" "$status" "$(base64 -w 0 "/tmp/output.$1")"
	rm -f "/tmp/script.$1" "/tmp/output.$1"
}
while :; do
	read -r verb nonce script || usleep 100000
	case $verb in
	P) printf '\nRPA %s\n' "$nonce" ;;
	# Not a child of this shell: the signal of a child's end makes busybox's read
	# (1.35) start again and lose what it has of a line.
	X) (run "$nonce" "$script" &) ;;
	esac
	verb=
done
