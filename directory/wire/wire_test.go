package wire

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"replug/directory/directorypb"
	"replug/directory/vnet"
)

var (
	unicast4 = rapid.Custom(func(t *rapid.T) netip.Addr {
		return netip.AddrFrom4([4]byte{byte(rapid.IntRange(1, 223).Draw(t, "a")), rapid.Byte().Draw(t, "b"), rapid.Byte().Draw(t, "c"), rapid.Byte().Draw(t, "d")})
	})
	unicast6 = rapid.Custom(func(t *rapid.T) netip.Addr {
		var a [16]byte
		a[0], a[1], a[15] = 0xfd, rapid.Byte().Draw(t, "a"), rapid.Byte().Draw(t, "b")
		return netip.AddrFrom16(a)
	})
	unicast = rapid.OneOf(unicast4, unicast6)
	epochs  = rapid.Custom(func(t *rapid.T) vnet.Epoch {
		return vnet.NewEpoch(rapid.Uint16Min(1).Draw(t, "era"), rapid.Uint64Max(1<<48-1).Draw(t, "counter"))
	})
	macs = rapid.Custom(func(t *rapid.T) vnet.MAC {
		m := vnet.MAC(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "mac"))
		m[0] = m[0]&^1 | 2
		return m
	})
	vnis     = rapid.Custom(func(t *rapid.T) vnet.VNI { return vnet.VNI(rapid.Uint32Range(1, 1<<24-1).Draw(t, "vni")) })
	words    = rapid.StringMatching(`[a-z][a-z0-9 .-]{0,12}`)
	monikers = rapid.StringMatching(`[a-z][a-z0-9-]{0,20}`)
	instants = rapid.Custom(func(t *rapid.T) time.Time {
		return time.Unix(rapid.Int64Range(1, 1<<33).Draw(t, "s"), rapid.Int64Range(0, 999999999).Draw(t, "ns")).UTC()
	})
	rates = rapid.Custom(func(t *rapid.T) vnet.Rate {
		return vnet.Rate{Bits: rapid.Uint64().Draw(t, "bits"), Packets: rapid.Uint64().Draw(t, "packets")}
	})
	personalities = rapid.SampledFrom([]vnet.Personality{"", vnet.PersonalityAgent, vnet.PersonalityCloudInit,
		vnet.PersonalityCloudInitSavable, vnet.PersonalityPlain, vnet.PersonalityEC2, vnet.PersonalityOpenStack, vnet.PersonalityNoCloud})
	spans = rapid.Custom(func(t *rapid.T) time.Duration { return time.Duration(rapid.Int64Min(0).Draw(t, "d")) })
)

func list[T any](t *rapid.T, g *rapid.Generator[T], name string) []T {
	if l := rapid.SliceOfN(g, 0, 3).Draw(t, name); len(l) > 0 {
		return l
	}
	return nil
}

func place(t *rapid.T) vnet.Place {
	return vnet.Place{
		Epoch: epochs.Draw(t, "epoch"), Tenant: words.Draw(t, "tenant"), Network: vnet.Moniker(monikers.Draw(t, "network")), VNI: vnis.Draw(t, "vni"),
		Addrs: list(t, rapid.Custom(func(t *rapid.T) vnet.Addr {
			ca := unicast.Draw(t, "ca")
			return vnet.Addr{CA: vnet.CA{Addr: ca}, Bits: rapid.IntRange(0, ca.BitLen()).Draw(t, "bits"), Gateway: unicast.Draw(t, "gateway"), SLAAC: rapid.Bool().Draw(t, "slaac")}
		}), "addrs"),
		Routes: list(t, rapid.Custom(func(t *rapid.T) vnet.Route {
			return vnet.Route{Prefix: netip.PrefixFrom(unicast4.Draw(t, "to"), rapid.IntRange(0, 32).Draw(t, "bits")), NextHop: unicast.Draw(t, "via"),
				Peer: rapid.OneOf(rapid.Just(vnet.VNI(0)), vnis).Draw(t, "peer")}
		}), "routes"),
		MTU: rapid.Uint16().Draw(t, "mtu"), Isolated: rapid.Bool().Draw(t, "isolated"),
		DHCP: vnet.DHCP{DNS: list(t, unicast, "dns"), Domain: words.Draw(t, "domain"), NTP: list(t, unicast, "ntp"), Lease: spans.Draw(t, "lease")},
		Document: rapid.Ptr(rapid.Custom(func(t *rapid.T) vnet.Document {
			return vnet.Document{Epoch: epochs.Draw(t, "epoch"), Tag: rapid.SampledFrom([]string{"", vnet.TagPartial}).Draw(t, "tag"),
				Instance: words.Draw(t, "instance"), Hostname: words.Draw(t, "hostname"), User: words.Draw(t, "user"),
				SSHKeys: list(t, words, "keys"), TimeZone: words.Draw(t, "zone"),
				Files: list(t, rapid.Custom(func(t *rapid.T) vnet.File {
					return vnet.File{Path: words.Draw(t, "path"), Mode: rapid.Uint32().Draw(t, "mode"), Content: rapid.String().Draw(t, "content")}
				}), "files"),
				PasswordHash: words.Draw(t, "hash"), DNS: list(t, unicast, "dns"),
				RunOnce: list(t, rapid.Custom(func(t *rapid.T) vnet.Command {
					return vnet.Command{ID: words.Draw(t, "id"), Command: rapid.String().Draw(t, "command")}
				}), "run once"),
				Disks: list(t, rapid.Custom(func(t *rapid.T) vnet.DataDisk {
					return vnet.DataDisk{ID: words.Draw(t, "id"), Path: words.Draw(t, "path")}
				}), "disks"), UserData: list(t, rapid.Byte(), "user data")}
		}), true).Draw(t, "document"),
		Swap: words.Draw(t, "swap"), Undo: rapid.Bool().Draw(t, "undo"), Undoable: rapid.Bool().Draw(t, "undoable"),
		Confirm: rapid.SampledFrom([]vnet.Confirm{"", vnet.ConfirmLease, vnet.ConfirmGuest, vnet.ConfirmCaller}).Draw(t, "confirm"),
		Hold:    rapid.SampledFrom([]vnet.Hold{"", vnet.HoldSnapshot}).Draw(t, "hold"),
		Trigger: rapid.SampledFrom([]vnet.Trigger{"", vnet.TriggerBounce, vnet.TriggerNone}).Draw(t, "trigger"),
		Groups:  list(t, words, "groups"), Router: rapid.Bool().Draw(t, "router"), FlowLog: rapid.Bool().Draw(t, "flow log"),
		OldConnections: rapid.SampledFrom([]vnet.OldConnections{"", vnet.ResetConnections, vnet.DrainConnections, vnet.SilenceConnections}).Draw(t, "old"),
		Drain:          spans.Draw(t, "drain"),
	}
}

func anyIntent(t *rapid.T) vnet.Intent {
	return vnet.Intent{
		Port: words.Draw(t, "port"), ID: vnet.PortID(rapid.IntRange(1, int(vnet.MaxPortID)).Draw(t, "id")), Host: words.Draw(t, "host"),
		MAC: macs.Draw(t, "mac"), PA: vnet.PA{Addr: unicast.Draw(t, "pa")}, VM: words.Draw(t, "vm"),
		Machine: rapid.Ptr(rapid.Custom(func(t *rapid.T) vnet.Machine {
			return vnet.Machine{ID: words.Draw(t, "id"), UUID: words.Draw(t, "uuid"), CPUs: int(rapid.Int32().Draw(t, "cpus")),
				Memory: int(rapid.Int32().Draw(t, "memory")), Image: words.Draw(t, "image"),
				Disks: list(t, rapid.Custom(func(t *rapid.T) vnet.Disk {
					return vnet.Disk{ID: words.Draw(t, "id"), Size: rapid.Int64().Draw(t, "size"), OS: rapid.Bool().Draw(t, "os")}
				}), "disks"),
				Power:       rapid.SampledFrom([]vnet.Power{vnet.PowerOn, vnet.PowerOff, vnet.PowerAbsent}).Draw(t, "power"),
				Personality: personalities.Draw(t, "personality")}
		}), true).Draw(t, "machine"),
		Tap: words.Draw(t, "tap"), Monitor: words.Draw(t, "monitor"), Current: place(t),
		Next: rapid.Ptr(rapid.Custom(place), true).Draw(t, "next"), Gone: rapid.Bool().Draw(t, "gone"),
		Limits: vnet.Limits{From: rates.Draw(t, "from"), To: rates.Draw(t, "to")},
	}
}

func anyGroup(t *rapid.T) vnet.Group {
	return vnet.Group{
		VNI: vnis.Draw(t, "vni"), Name: monikers.Draw(t, "name"), Slot: rapid.Uint8Max(vnet.MaxGroups-1).Draw(t, "slot"), Generation: rapid.Uint64().Draw(t, "generation"),
		Rules: list(t, rapid.Custom(func(t *rapid.T) vnet.Rule {
			r := vnet.Rule{
				Name: words.Draw(t, "name"), Priority: rapid.Uint16Min(1).Draw(t, "priority"),
				Direction: rapid.SampledFrom([]vnet.Direction{vnet.In, vnet.Out}).Draw(t, "direction"),
				Action:    rapid.SampledFrom([]vnet.Action{vnet.Allow, vnet.Deny}).Draw(t, "action"),
				Protocol:  vnet.Protocol(rapid.Uint8().Draw(t, "protocol")), RemoteGroup: rapid.SampledFrom([]string{"", "db"}).Draw(t, "group"),
				MaxPort: rapid.Uint16().Draw(t, "max"), ICMPType: rapid.Ptr(rapid.Uint8(), true).Draw(t, "type"),
			}
			r.MinPort = rapid.Uint16Max(r.MaxPort).Draw(t, "min")
			if rapid.Bool().Draw(t, "remote") {
				a := unicast.Draw(t, "remote")
				r.Remote = netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits"))
			}
			return r
		}), "rules"),
	}
}

func anyService(t *rapid.T) vnet.Service {
	return vnet.Service{
		VNI: vnis.Draw(t, "vni"), Name: monikers.Draw(t, "name"), VIP: vnet.CA{Addr: unicast.Draw(t, "vip")}, Port: rapid.Uint16Min(1).Draw(t, "port"),
		Protocol: rapid.SampledFrom([]vnet.Protocol{vnet.TCP, vnet.UDP, vnet.SCTP}).Draw(t, "protocol"), Affinity: rapid.Bool().Draw(t, "affinity"),
		Check: rapid.Ptr(rapid.Custom(func(t *rapid.T) vnet.Check {
			return vnet.Check{Port: rapid.Uint16().Draw(t, "port"), Interval: 1 + spans.Draw(t, "interval")/2, Timeout: 1 + spans.Draw(t, "timeout")/2,
				Rise: rapid.IntRange(1, 9).Draw(t, "rise"), Fall: rapid.IntRange(1, 9).Draw(t, "fall")}
		}), true).Draw(t, "check"),
		Backends: list(t, rapid.Custom(func(t *rapid.T) vnet.Backend {
			return vnet.Backend{Member: words.Draw(t, "member"), CA: vnet.CA{Addr: unicast.Draw(t, "ca")}, Port: rapid.Uint16().Draw(t, "port"),
				Weight: rapid.Uint16Max(vnet.MaxWeight).Draw(t, "weight"), Draining: rapid.Bool().Draw(t, "draining"), Dead: rapid.Bool().Draw(t, "dead"), Away: rapid.Bool().Draw(t, "away")}
		}), "backends"),
	}
}

func anyStatus(t *rapid.T) vnet.Status {
	return vnet.Status{
		Port: words.Draw(t, "port"), Host: "h7", Session: 11, Epoch: epochs.Draw(t, "epoch"), Seq: rapid.Uint64().Draw(t, "seq"),
		Phase: vnet.StatusPhase(rapid.IntRange(1, 8).Draw(t, "phase")), Power: rapid.SampledFrom([]vnet.Power{"", vnet.PowerOff}).Draw(t, "power"),
		Error: words.Draw(t, "error"), Rung: words.Draw(t, "rung"), Blackout: spans.Draw(t, "blackout"),
		Hops: list(t, rapid.Custom(func(t *rapid.T) vnet.Hop { return vnet.Hop{Name: words.Draw(t, "name"), At: instants.Draw(t, "at")} }), "hops"),
		Guest: rapid.Ptr(rapid.Custom(func(t *rapid.T) vnet.GuestReport {
			return vnet.GuestReport{Epoch: epochs.Draw(t, "epoch"), Kind: rapid.SampledFrom([]string{vnet.ReportPartial, vnet.ReportFinal}).Draw(t, "kind"),
				OK: rapid.Bool().Draw(t, "ok"), Error: words.Draw(t, "error"), BootID: words.Draw(t, "boot"), Hostname: words.Draw(t, "hostname"),
				Addrs: list(t, words, "addrs"), MAC: words.Draw(t, "mac"), At: instants.Draw(t, "at")}
		}), true).Draw(t, "guest"),
	}
}

// through sends a message over the wire.
func through[M proto.Message](t *rapid.T, m, out M) M {
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out
}

var byValue = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmp.AllowUnexported(vnet.CA{}, vnet.PA{})}

func same2[T any](t *rapid.T, got, want T, err error) {
	t.Helper()
	if d := cmp.Diff(want, got, byValue); err != nil || d != "" {
		t.Fatalf("%v (-want +got)\n%s", err, d)
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		i := anyIntent(t)
		gotI, err := ToIntent(through(t, FromIntent(&i), new(directorypb.Intent)))
		same2(t, gotI, i, err)
		s := anyStatus(t)
		gotS, err := ToStatus(through(t, FromStatus(&s), new(directorypb.Status)), "h7", 11)
		same2(t, gotS, s, err)
		m := vnet.Mapping{VNI: vnis.Draw(t, "vni"), CA: vnet.CA{Addr: unicast.Draw(t, "ca")}, PA: vnet.PA{Addr: unicast.Draw(t, "pa")},
			MAC: macs.Draw(t, "mac"), Epoch: epochs.Draw(t, "epoch"), Port: words.Draw(t, "port"), Host: words.Draw(t, "host"),
			Groups: vnet.Groups(rapid.Uint64().Draw(t, "groups"))}
		gotM, err := ToMapping(through(t, FromMapping(&m), new(directorypb.Mapping)))
		same2(t, gotM, m, err)
		g := anyGroup(t)
		gotG, err := ToGroup(through(t, FromGroup(&g), new(directorypb.Group)))
		same2(t, gotG, g, err)
		v := anyService(t)
		gotV, err := ToService(through(t, FromService(&v), new(directorypb.Service)))
		same2(t, gotV, v, err)
		found := []vnet.Health{{VNI: g.VNI, Service: v.Name, Member: "p23", Dead: v.Affinity, Error: words.Draw(t, "error")}}
		gotF, err := ToHealth(through(t, FromHealth(found), new(directorypb.Health)))
		same2(t, gotF, found, err)
		h := vnet.HostInfo{Name: words.Draw(t, "name"), Address: unicast.Draw(t, "address"), PAPrefix: netip.PrefixFrom(unicast4.Draw(t, "prefix"), 27),
			MTU: rapid.Uint16().Draw(t, "mtu"), Ports: 50, Memory: 2048, Images: list(t, words, "images"), Labels: map[string]string{"rack": "r7"}, Version: "v"}
		gotH, err := ToHost(through(t, FromHost(&h), new(directorypb.Host)))
		same2(t, gotH, h, err)
	})
}

func TestStrict(t *testing.T) {
	good := func() *directorypb.Intent {
		return &directorypb.Intent{Port: "p23", Id: 23, Mac: []byte{2, 0x52, 0x1a, 0x2b, 0x3c, 0x4d}, Pa: "100.64.9.23",
			Current: &directorypb.Place{Epoch: 7, Network: "red", Vni: 0xa1b2c3, Addrs: []*directorypb.Addr{{Ca: "10.0.0.10", Bits: 24}}}}
	}
	if _, err := ToIntent(good()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*directorypb.Intent){
		"no port":                   func(i *directorypb.Intent) { i.Port = "" },
		"port id too high":          func(i *directorypb.Intent) { i.Id = uint32(vnet.MaxPortID) + 1 },
		"port id that wraps around": func(i *directorypb.Intent) { i.Id = 65536 + 23 },
		"short MAC":                 func(i *directorypb.Intent) { i.Mac = i.Mac[:5] },
		"group MAC":                 func(i *directorypb.Intent) { i.Mac[0] = 3 },
		"no PA":                     func(i *directorypb.Intent) { i.Pa = "" },
		"no place":                  func(i *directorypb.Intent) { i.Current = nil },
		"no epoch":                  func(i *directorypb.Intent) { i.Current.Epoch = 0 },
		"VNI too large":             func(i *directorypb.Intent) { i.Current.Vni = 1 << 24 },
		"moniker":                   func(i *directorypb.Intent) { i.Current.Network = "Red" },
		"CA":                        func(i *directorypb.Intent) { i.Current.Addrs[0].Ca = "10.0.0.300" },
		"prefix length":             func(i *directorypb.Intent) { i.Current.Addrs[0].Bits = 33 },
		"MTU that wraps around":     func(i *directorypb.Intent) { i.Current.Mtu = 65536 + 1500 },
		"confirm":                   func(i *directorypb.Intent) { i.Current.Confirm = "maybe" },
		"old connections":           func(i *directorypb.Intent) { i.Current.OldConnections = "keep" },
		"peer VNI":                  func(i *directorypb.Intent) { i.Current.Routes = []*directorypb.Route{{Peer: 1 << 24}} },
		"next without VNI":          func(i *directorypb.Intent) { i.Next = &directorypb.Place{Epoch: 8, Network: "blue"} },
	} {
		i := good()
		spoil(i)
		if _, err := ToIntent(i); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: got %v, want %v", name, err, ErrMessage)
		}
	}
	for name, s := range map[string]*directorypb.Status{
		"no port":                 {Epoch: 7, Phase: 3},
		"no epoch":                {Port: "p23", Phase: 3},
		"no phase":                {Port: "p23", Epoch: 7},
		"phase":                   {Port: "p23", Epoch: 7, Phase: 9},
		"phase that wraps around": {Port: "p23", Epoch: 7, Phase: 256 + 3},
		"report that is neither":  {Port: "p23", Epoch: 7, Phase: 3, Guest: &directorypb.GuestReport{Epoch: 7}},
	} {
		if _, err := ToStatus(s, "h7", 11); !errors.Is(err, ErrMessage) {
			t.Errorf("status, %s: got %v, want %v", name, err, ErrMessage)
		}
	}
	if _, err := ToHost(&directorypb.Host{Name: "h7"}); !errors.Is(err, ErrMessage) {
		t.Errorf("host without address: %v", err)
	}
}

func TestStrictPolicy(t *testing.T) {
	rule := func() *directorypb.Rule {
		return &directorypb.Rule{Name: "https", Priority: 100, Direction: "in", Action: "allow", Protocol: 6, MinPort: 443, MaxPort: 443}
	}
	icmp := uint32(256)
	for name, spoil := range map[string]func(*directorypb.Group, *directorypb.Rule){
		"":                       func(*directorypb.Group, *directorypb.Rule) {},
		"no name":                func(g *directorypb.Group, _ *directorypb.Rule) { g.Name = "" },
		"slot":                   func(g *directorypb.Group, _ *directorypb.Rule) { g.Slot = 64 },
		"slot that wraps around": func(g *directorypb.Group, _ *directorypb.Rule) { g.Slot = 256 + 3 },
		"no priority":            func(_ *directorypb.Group, r *directorypb.Rule) { r.Priority = 0 },
		"priority":               func(_ *directorypb.Group, r *directorypb.Rule) { r.Priority = 65536 + 5 },
		"direction":              func(_ *directorypb.Group, r *directorypb.Rule) { r.Direction = "" },
		"action":                 func(_ *directorypb.Group, r *directorypb.Rule) { r.Action = "drop" },
		"protocol":               func(_ *directorypb.Group, r *directorypb.Rule) { r.Protocol = 256 + 6 },
		"remote":                 func(_ *directorypb.Group, r *directorypb.Rule) { r.Remote = "10.0.0.0/33" },
		"ports":                  func(_ *directorypb.Group, r *directorypb.Rule) { r.MaxPort = 442 },
		"ICMP type":              func(_ *directorypb.Group, r *directorypb.Rule) { r.IcmpType = &icmp },
	} {
		r := rule()
		g := &directorypb.Group{Vni: 0xa1b2c3, Name: "web", Slot: 7, Rules: []*directorypb.Rule{r}}
		spoil(g, r)
		if _, err := ToGroup(g); errors.Is(err, ErrMessage) != (name != "") {
			t.Errorf("group, %s: %v", name, err)
		}
	}
	for name, spoil := range map[string]func(*directorypb.Service){
		"":              func(*directorypb.Service) {},
		"no VIP":        func(s *directorypb.Service) { s.Vip = "" },
		"no port":       func(s *directorypb.Service) { s.Port = 0 },
		"protocol":      func(s *directorypb.Service) { s.Protocol = uint32(vnet.ICMP) },
		"check at once": func(s *directorypb.Service) { s.Check = &directorypb.Check{Rise: 2, Fall: 3} },
		"weight":        func(s *directorypb.Service) { s.Backends[0].Weight = 1001 },
		"backend":       func(s *directorypb.Service) { s.Backends[0].Ca = "" },
	} {
		s := &directorypb.Service{Vni: 0xa1b2c3, Name: "www", Vip: "10.0.0.99", Port: 443, Protocol: 6,
			Backends: []*directorypb.Backend{{Member: "p23", Ca: "10.0.0.10", Port: 8443, Weight: 1000}}}
		spoil(s)
		if _, err := ToService(s); errors.Is(err, ErrMessage) != (name != "") {
			t.Errorf("service, %s: %v", name, err)
		}
	}
}

// What a guest writes must not break the stream.
func TestHostileText(t *testing.T) {
	s := vnet.Status{Port: "p23", Epoch: 7, Phase: vnet.StatusConfirmed,
		Guest: &vnet.GuestReport{Epoch: 7, Kind: vnet.ReportFinal, Hostname: "web\xff-1", Addrs: []string{"10\xfe"}}}
	if _, err := proto.Marshal(FromStatus(&s)); err != nil {
		t.Error(err)
	}
}
