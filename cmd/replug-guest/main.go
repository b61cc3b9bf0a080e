// Command replug-guest is the agent inside a VM: see package guest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"replug/dataplane/guest"
	"replug/directory/vnet"
)

const usage = `Example:
  replug-guest --dhcp own 2>/dev/console &     at boot of a VM, as root

Follows the NIC and the host's metadata service: renews the address on a link
event, applies the published configuration, reports it with its epoch. A NIC that
another DHCP client manages is left to that one, which is told to renew.
While ROOT/run/replug-guest/dhcp-off exists it leaves the NIC alone (maintenance).
SIGTERM ends it. Exit codes: 0 ok, 1 error, 2 usage.

Flags:
`

func main() {
	if serve() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main with its surroundings passed in; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := guest.Default()
	c.Log = stderr
	f := flag.NewFlagSet("replug-guest", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&c.Interface, "iface", c.Interface, "`NIC` to follow (default: the first Ethernet NIC)")
	f.StringVar(&c.DHCP, "dhcp", c.DHCP, "who runs DHCP: own, none, or auto (own, unless a DHCP client already runs)")
	f.StringVar(&c.IMDS, "imds", c.IMDS, "`URL` of the metadata service")
	f.StringVar(&c.Channel, "channel", c.Channel, "`file` or Unix socket of the second channel (default: the virtio port "+vnet.ChannelName+", if there is one)")
	f.StringVar(&c.Root, "root", c.Root, "prefix of every file; below another than / the running kernel's host name is left alone")
	f.DurationVar(&c.Wait, "wait", c.Wait, "how long the metadata service may hold a poll open")
	f.DurationVar(&c.LinkPoll, "link-poll", c.LinkPoll, "how often the link is asked beside its events")
	f.BoolVar(&c.Once, "once", c.Once, "end after the first configuration that was reported")
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		f.SetOutput(stdout)
		f.PrintDefaults()
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "replug-guest: %v (see --help)\n", err)
		return 2
	case f.NArg() > 0:
		fmt.Fprintf(stderr, "replug-guest: unexpected argument %q (see --help)\n", f.Arg(0))
		return 2
	}
	if err := c.Check(); err != nil {
		fmt.Fprintf(stderr, "replug-guest: %v (see --help)\n", err)
		return 2
	}
	if err := guest.Run(ctx, c); err != nil {
		fmt.Fprintf(stderr, "replug-guest: %v\n", err)
		return 1
	}
	return 0
}
