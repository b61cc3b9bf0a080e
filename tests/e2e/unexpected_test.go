package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// usual are the reasons for which frames are dropped while nobody means ill.
var usual = strings.Fields("" +
	"no_port closed ip_options nd_probe arp_probe arp_own link_scope " + // guests come up, and go
	"spoofed_arp spoofed_ca imds_source stale_epoch midstream " + // a guest has left, and speaks as if it hadn't
	"no_mapping not_local to_closed") // others speak to one that has left, or isn't there yet

// unexpected returns an error if a host has dropped frames, since this was asked last,
// for reasons that are neither usual nor provoked. Tests run one after the other, and
// the guests of each are off when it asks: what was dropped is of its own doing.
func (w *world) unexpected(ctx context.Context, provoked ...string) error {
	var errs []error
	was := w.drops
	w.drops = make(map[string]float64)
	for h := 1; h <= 2; h++ {
		all, err := scrape(ctx, w.Lab.Host(h), 9417)
		errs = append(errs, err)
		for name, n := range all {
			reason, ok := strings.CutPrefix(name, `replug_drops_total{reason="`)
			if !ok {
				continue
			}
			reason = strings.TrimSuffix(reason, `"}`)
			key := fmt.Sprint("host ", h, " ", reason)
			w.drops[key] = n
			if n > was[key] && !slices.Contains(usual, reason) && !slices.Contains(provoked, reason) {
				errs = append(errs, fmt.Errorf("host %d has dropped %.0f frames as %s, which is not usual and not what this test provokes", h, n-was[key], reason))
			}
		}
	}
	return errors.Join(errs...)
}

// dropped returns how many frames both hosts have dropped for some reasons.
func (w *world) dropped(ctx context.Context, t *testing.T, reasons ...string) (n float64) {
	t.Helper()
	for h := 1; h <= 2; h++ {
		all := metrics(ctx, t, w.Lab.Host(h), 9417)
		for _, r := range reasons {
			n += all[fmt.Sprintf("replug_drops_total{reason=%q}", r)]
		}
	}
	return n
}
