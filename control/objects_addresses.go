package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"replug/control/network"
	"replug/control/swap"
	"replug/directory/store"
	"replug/directory/vnet"
)

// take holds the addresses that a port is to have in net. In a swap within one
// network the addresses stay of which nothing else is said.
func (o objects) take(ctx context.Context, q swap.Request, in *vnet.Intent, net store.Row[network.Network], families network.Families) ([]vnet.CA, *store.Txn, error) {
	cur := &in.Current
	need := families | network.FamiliesOf(network.CAsOf(cur))
	var kept []vnet.CA
	want := slices.Clone(q.CAs)
	if cur.VNI == net.Value.VNI {
		asked := network.FamiliesOf(slices.DeleteFunc(want, cur.Has))
		for _, ca := range network.CAsOf(cur) {
			if f := network.FamilyOf(ca.Addr); !asked.Has(f) {
				kept = append(kept, ca)
				need &^= f
			}
		}
		want = slices.DeleteFunc(slices.Clone(q.CAs), cur.Has)
		if need == 0 {
			return nil, nil, fmt.Errorf("port %s: %w: it is in network %s already, as %s; name another network or address", in.Port, ErrNotSo, q.Network, addrsOf(cur))
		}
	}
	cas, txn, err := o.r.networks.Take(ctx, net, want, need, in.MAC, network.Holder{Port: in.Port, Claim: q.Claim, State: network.Held})
	if err != nil {
		return nil, nil, err
	}
	cas = append(cas, kept...)
	slices.SortFunc(cas, func(a, b vnet.CA) int { return cmp.Compare(network.FamilyOf(a.Addr), network.FamilyOf(b.Addr)) })
	return cas, txn, nil
}

// only returns the CAs of a place that another place of the port doesn't have too.
func only(p, other *vnet.Place) []vnet.CA {
	return slices.DeleteFunc(network.CAsOf(p), func(ca vnet.CA) bool { return p.VNI == other.VNI && other.Has(ca) })
}

func addrsOf(p *vnet.Place) string {
	s := ""
	for i, a := range p.Addrs {
		if i > 0 {
			s += ", "
		}
		s += a.CA.String()
	}
	return s
}
