package host_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"replug/directory/vnet"
)

// The stock image boots by the metadata of each cloud, told by its firmware alone
// which one to ask, and becomes its owner's: from scratch, with no pool before it.
func TestCloudInitDialects(t *testing.T) {
	s := newStock(t, "hostdebdi", "dialects")
	clouds := map[vnet.Personality]string{vnet.PersonalityEC2: "DataSourceEc2", vnet.PersonalityOpenStack: "DataSourceOpenStack",
		vnet.PersonalityNoCloud: "DataSourceNoCloud", vnet.PersonalityCloudInit: "DataSourceAzure"}
	var all []vnet.Intent
	for personality := range clouds {
		n := 26 + len(all)
		in := s.machine(n, personality, owned(n))
		s.dir.put(in)
		all = append(all, in)
	}
	for _, in := range all {
		s.dir.await(s.ctx, t, in.Port, in.Current.Epoch, vnet.StatusPublished)
		s.applied(in)
		if got, want := s.in(in, "cat /var/lib/cloud/instance/datasource"), clouds[in.Machine.Personality]; !strings.Contains(got, want) {
			t.Errorf("personality %s came by %q, want %s", in.Machine.Personality, got, want)
		}
	}
}

// A pool is IPv4, a claim's network may be both: cloud-init leaves the pool by the
// one, and the guest's own client brings the other.
func TestCloudInitDual(t *testing.T) {
	s := newStock(t, "hostdebdu", "dual")
	in := s.pool(29, vnet.PersonalityCloudInit)
	s.pooled(in)
	in, _ = s.claimTo(in, dual(owned(29), "fd17:34::81"), nil)
	s.applied(in)
	s.has6(in, "fd17:34::81")
	in = s.move(in, dual(place("red", red, "10.17.34.78", 9), "fd17:34::4e"))
	s.has6(in, "fd17:34::4e")
	if got := s.in(in, addresses); got != "10.17.34.78/24" {
		t.Errorf("after the swap it has %q", got)
	}
}

func dual(p vnet.Place, ca string) vnet.Place {
	p.Addrs = append(p.Addrs, vnet.Addr{CA: vnet.CA{Addr: netip.MustParseAddr(ca)}, Bits: 64})
	return p
}

// has6 waits until the guest has one IPv6 address and no other.
func (s *stock) has6(in vnet.Intent, ca string) {
	s.t.Helper()
	if got := s.in(in, waits(fmt.Sprintf("%s | grep -q '^%s/'", addresses6, ca))+"; "+addresses6); got != ca+"/128" {
		s.t.Errorf("%s has %q, want %s alone", in.VM, got, ca)
	}
}
