package demo

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"replug/tests/lab"
)

// A cast is the image that plays, and what it needs for that.
type cast struct {
	image    func(ctx context.Context, bin string) (dir string, err error)
	memory   string        // MiB
	budget   time.Duration // for booting anything
	patience time.Duration // for a script inside
	lease    time.Duration // for a swap until it is seen; 0: as usual
	rename   string        // what a swap calls it; "": nobody in it takes settings after the claim
	settled  string        // a script that ends once the guest has done what follows a claim; "": nothing does
	deaf     string        // switches the guest's DHCP off
	hears    string        // and on again
}

// casts are the small guest with our agent in it, and the stock Debian image with
// nothing of ours, which networkd moves: its first swap climbs the ladder to a long cut.
var casts = map[string]cast{
	"": {
		image: func(ctx context.Context, bin string) (string, error) {
			return lab.BuildGuest(ctx, filepath.Join(bin, "replug-guest"))
		},
		memory: "128", budget: 3 * time.Minute, patience: 20 * time.Second, rename: "blue-1",
		deaf: "mkdir -p /run/replug-guest; touch /run/replug-guest/dhcp-off", hears: "rm /run/replug-guest/dhcp-off",
	},
	"debian": {
		image:  func(ctx context.Context, _ string) (string, error) { return lab.BuildDebian(ctx) },
		memory: "384", budget: 12 * time.Minute, patience: 2 * time.Minute, lease: time.Minute,
		settled: "until test -f /var/lib/cloud/instance/boot-finished; do sleep 1; done",
		// Held, not stopped: as it stops it gives its addresses up.
		deaf: "kill -STOP $(pidof systemd-networkd)", hears: "kill -CONT $(pidof systemd-networkd)",
	},
}

func castOf(name string) (cast, error) {
	c, ok := casts[name]
	if !ok {
		return c, fmt.Errorf("no guest %q plays here: leave it out, or take debian", name)
	}
	return c, nil
}

// leaseBudget is what a swap is asked for.
func (c *cast) leaseBudget() *durationpb.Duration {
	if c.lease == 0 {
		return nil
	}
	return durationpb.New(c.lease)
}

// settle waits until the guest has done what follows a claim.
func (o *watched) settle(ctx context.Context, id string) error {
	if o.world.cast.settled == "" {
		return nil
	}
	_, err := o.within(ctx, o.world.cast.budget, id, o.world.cast.settled)
	return err
}
