package bench

import (
	"context"
	"errors"

	"replug/tests/cluster"
	"replug/tests/lab"
)

// startCluster makes a lab of hosts with the programs under test in it. end takes
// everything down, also after ctx has ended.
func startCluster(ctx context.Context, o Options, hosts int, config cluster.Config) (c *cluster.Cluster, end func() error, err error) {
	l, err := lab.Up(ctx, lab.Config{Name: o.Name, Hosts: hosts, Helper: o.Helper})
	if err != nil {
		return nil, nil, err
	}
	down := func() error { return l.Down(context.WithoutCancel(ctx)) }
	config.Bin = o.Bin
	if c, err = cluster.Start(ctx, l, config); err != nil {
		return nil, nil, errors.Join(err, down())
	}
	return c, func() error { c.Close(); return down() }, nil
}
