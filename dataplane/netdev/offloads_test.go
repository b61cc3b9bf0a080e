package netdev_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"replug/dataplane/netdev"
)

// ethtool is the judge.
func TestOffloads(t *testing.T) {
	newNetns(t)
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far"}))
	for _, change := range []string{"off", "on"} {
		if out, err := exec.Command("ethtool", "-K", "near", "gro", change, "tx-udp-segmentation", change).CombinedOutput(); err != nil {
			t.Fatalf("ethtool: %v: %s", err, out)
		}
		got, err := netdev.Offloads("near")
		must(t, err)
		if on := change == "on"; got["rx-gro"] != on || got["tx-udp-segmentation"] != on || !got["tx-checksum-ip-generic"] || got["tx-vlan-stag-hw-insert"] == got["loopback"] {
			t.Errorf("%s: got %v", change, got)
		}
	}
	if _, err := netdev.Offloads("nobody"); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("a device that isn't there: got %v", err)
	}
}

func TestDriverXDP(t *testing.T) {
	newNetns(t)
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far"}))
	d, err := netdev.Find("near")
	must(t, err)
	for ifindex, want := range map[int]bool{d.Ifindex: true, 1: false} {
		got, err := netdev.DriverXDP(ifindex)
		if err != nil || got.Native != want || got.Redirect != want || got.Frags != want {
			t.Errorf("device %d: got %+v, %v, want %v", ifindex, got, err, want)
		}
	}
}

func TestReversePathAndThreads(t *testing.T) {
	newNetns(t)
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far"}))
	set := func(device, value string) {
		must(t, os.WriteFile("/proc/sys/net/ipv4/conf/"+device+"/rp_filter", []byte(value), 0))
	}
	set("all", "0")
	for _, c := range []struct {
		value string
		want  int
	}{{"0", 0}, {"2", 2}, {"1", 1}} {
		set("near", c.value)
		if got, err := netdev.ReversePath("near"); err != nil || got != c.want {
			t.Errorf("rp_filter %s: got %d, %v", c.value, got, err)
		}
	}
	if on, err := netdev.Threaded("lo"); err == nil && on {
		t.Error("the loopback device has threads")
	}
	if _, err := netdev.TapTakesUSO(); err != nil {
		t.Error(err)
	}
}
