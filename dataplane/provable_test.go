package dataplane

import (
	"testing"

	"replug/directory/vnet"
)

// cloud-init in the pool asks for an IPv4 lease only, so on the way out of it only
// that can be proved; everybody else is to be seen in each family.
func TestProvable(t *testing.T) {
	for _, c := range []struct {
		personality vnet.Personality
		pooled      bool
		want        int
	}{{vnet.PersonalityCloudInit, true, 1}, {vnet.PersonalityCloudInitSavable, true, 1}, {vnet.PersonalityCloudInit, false, 2}, {vnet.PersonalityAgent, true, 2}} {
		in := intent()
		in.Machine = machine(vnet.PowerOn)
		in.Machine.Personality = c.personality
		six, err := vnet.ParseCA("fd17:34::62")
		if err != nil {
			t.Fatal(err)
		}
		in.Current.Addrs = append(in.Current.Addrs, vnet.Addr{CA: six, Bits: 64})
		p := &port{run: run{Pooled: c.pooled}}
		got := p.provable(&in)
		if len(got) != c.want || got[0] != ipv4 {
			t.Errorf("%s, pooled %t: %v", c.personality, c.pooled, got)
		}
		in.Current.Addrs = in.Current.Addrs[1:]
		if got := p.provable(&in); len(got) != 1 || got[0] != ipv6 {
			t.Errorf("%s, pooled %t, IPv6 alone: %v", c.personality, c.pooled, got)
		}
	}
}
