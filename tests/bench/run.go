package bench

import (
	"context"
	"net"
	"strings"

	"replug/tests/lab"
)

// run runs commands inside a namespace, one after the other.
func run(ctx context.Context, n *lab.Node, commands ...string) error {
	for _, c := range commands {
		if _, err := n.Run(ctx, strings.Fields(c)...); err != nil {
			return err
		}
	}
	return nil
}

func macOf(n *lab.Node, dev string) (mac net.HardwareAddr, err error) {
	err = n.Do(func() error {
		d, err := net.InterfaceByName(dev)
		if err == nil {
			mac = d.HardwareAddr
		}
		return err
	})
	return mac, err
}
