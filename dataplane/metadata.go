package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"replug/dataplane/imds"
	"replug/dataplane/netdev"
)

const metadataPort = 80

// listenMetadata opens the metadata service at each address where guests look for
// it. A host without IPv6 serves them over IPv4.
func (h *Host) listenMetadata(ctx context.Context) ([]net.Listener, error) {
	var all []net.Listener
	for _, a := range netdev.MetadataAddresses {
		l, err := imds.Listen(ctx, h.underlay.imds.Near.Name, netip.AddrPortFrom(a, metadataPort).String())
		if err != nil && a.Is6() {
			h.log.Warn("no metadata service over IPv6", "address", a, "why", err)
			continue
		}
		if err != nil {
			for _, open := range all {
				err = errors.Join(err, open.Close())
			}
			return nil, fmt.Errorf("serve metadata: %w", err)
		}
		all = append(all, l)
	}
	return all, nil
}
