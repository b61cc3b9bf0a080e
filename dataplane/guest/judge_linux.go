package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"replug/directory/vnet"
)

// A judge says whether the NIC's addresses are those of the network that is behind
// it now. What the host has said counts; otherwise an address counts if it leads to
// the metadata service: the host drops what comes from any other.
type judge struct {
	nic   *nic
	index int
	name  string
	imds  string // host:port of the service, over IPv4
	old   []netip.Prefix
	moved *vnet.Moved // nil: the host has said nothing

	patience time.Duration
}

const (
	judgePatience = 6 * time.Second        // for one way to lead to a new address; DHCPv6 has waits of a second each
	judgeProbing  = 15 * time.Second       // the same for dhcpcd: alone it looks 5 s for others that have it (RFC 5227)
	judgeSeen     = 6 * time.Second        // the same for networkd 252: up to 1.5 s to its router solicitation, 2 to an address that nobody else has
	judgeWork     = 45 * time.Second       // the most that dhcpcd gets while it is at work
	judgeGlance   = 2 * time.Second        // so long it gets each time
	judgeOther    = 3 * time.Second        // for the guest's other family, once one has its address and the host has named none
	judgeSilence  = 2 * time.Second        // for an address to lead to a metadata service that was silent: it may be slow
	judgeAgain    = 250 * time.Millisecond // to ask addresses again that did not answer
)

// await waits until the NIC has its new addresses, removes the old ones that are
// left, and returns those. False: they did not come.
func (j *judge) await(ctx context.Context, news *addrNews) ([]netip.Prefix, bool) {
	ctx, cancel := context.WithTimeout(ctx, j.patience)
	defer cancel()
	var first time.Time // that an address was good
	for ctx.Err() == nil {
		now := j.nic.addresses(j.index)
		good := j.good(ctx, now)
		if len(good) > 0 && first.IsZero() {
			first = time.Now()
		}
		if j.complete(good, !first.IsZero() && time.Since(first) >= judgeOther) {
			return j.tidy(now, good), true
		}
		news.wait(ctx, judgeAgain)
	}
	return nil, false
}

// awaitWork is await for clients that were told nothing. dhcpcd gets more than its
// patience while it is at work: told now it would begin anew. It mostly waits, but its
// scripts take a second each where the guest is emulated.
func (j *judge) awaitWork(ctx context.Context, news *addrNews, clients []otherClient) ([]netip.Prefix, bool) {
	end := time.Now().Add(judgeWork)
	for used := cpuOf(clients); ; j.patience = judgeGlance {
		gone, ok := j.await(ctx, news)
		now := cpuOf(clients)
		if ok || ctx.Err() != nil || now-used < judgeGlance/5 || time.Now().After(end) {
			return gone, ok
		}
		used = now
	}
}

// cpuOf is what dhcpcd and those that it has started, and that have ended, have used of
// the CPU (proc_pid_stat(5): utime, stime, cutime and cstime, in 1/100 s).
func cpuOf(clients []otherClient) (used time.Duration) {
	for _, c := range clients {
		if c.name != dhcpcd {
			continue
		}
		for _, pid := range c.pids {
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			_, after, _ := strings.Cut(string(stat), ") ") // the name may have blanks
			f := strings.Fields(after)
			for i := 11; i < 15 && i < len(f); i++ {
				ticks, _ := strconv.Atoi(f[i])
				used += time.Duration(ticks) * time.Second / 100
			}
		}
	}
	return used
}

// good returns the addresses that are of this network.
func (j *judge) good(ctx context.Context, now []netip.Prefix) []netip.Prefix {
	if j.moved != nil && len(j.moved.Addrs) > 0 {
		return slices.DeleteFunc(slices.Clone(now), func(p netip.Prefix) bool {
			return !slices.ContainsFunc(j.moved.Addrs, func(w netip.Prefix) bool { return w.Addr() == p.Addr() })
		})
	}
	answers := make(chan netip.Prefix, len(now))
	for _, p := range now {
		go func() {
			if !j.leads(ctx, p.Addr()) {
				p = netip.Prefix{}
			}
			answers <- p
		}()
	}
	var good []netip.Prefix
	for range now {
		if p := <-answers; p.IsValid() {
			good = append(good, p)
		}
	}
	return good
}

// leads reports whether a connection from the address reaches the host.
func (j *judge) leads(ctx context.Context, from netip.Addr) bool {
	to := j.imds
	if from.Is6() {
		to = metadata6
	}
	d := net.Dialer{Timeout: judgeAgain, LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	c, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return errors.Is(err, unix.ECONNREFUSED) // somebody answered
	}
	c.Close()
	return true
}

// complete reports whether all addresses are there that are waited for: one at least,
// and in each family that the guest had before the one that the host has named. If it
// has named none, the network may not have that family: late says that it was waited
// for long enough. Before that nothing is tidied up: a client that still works on one
// family may not see its address taken away.
func (j *judge) complete(good []netip.Prefix, late bool) bool {
	if len(good) == 0 {
		return false
	}
	if j.moved == nil {
		return late || !slices.ContainsFunc(j.old, func(p netip.Prefix) bool { return !hasFamily(good, p) })
	}
	for _, w := range j.moved.Addrs {
		if hasFamily(j.old, w) && !slices.ContainsFunc(good, func(p netip.Prefix) bool { return p.Addr() == w.Addr() }) {
			return false
		}
	}
	return true
}

// hasFamily reports whether one of the addresses is of the family of p.
func hasFamily(all []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(all, func(a netip.Prefix) bool { return a.Addr().Is4() == p.Addr().Is4() })
}

// tidy removes what was there before and is of no use now. In the subnet of an old
// IPv4 address the new one is its secondary, and would go with it.
func (j *judge) tidy(now, good []netip.Prefix) (gone []netip.Prefix) {
	defer j.promote()()
	for _, p := range now {
		if slices.Contains(good, p) || !slices.Contains(j.old, p) {
			continue
		}
		if err := j.nic.remove(j.index, p); err == nil {
			gone = append(gone, p)
		}
	}
	return gone
}

// promote lets a secondary address take the place of its primary, until the returned
// function is called.
func (j *judge) promote() (end func()) {
	file := filepath.Join("/proc/sys/net/ipv4/conf", j.name, "promote_secondaries")
	before, err := os.ReadFile(file)
	if err != nil || os.WriteFile(file, []byte("1"), 0o644) != nil {
		return func() {} // then the client has to give the address again
	}
	return func() { _ = os.WriteFile(file, before, 0o644) }
}

// addrNews hears when addresses of the machine change.
type addrNews struct{ sock *os.File }

func watchAddrs() (*addrNews, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to addresses: %w", err)
	}
	return &addrNews{os.NewFile(uintptr(fd), "rtnetlink")}, nil
}

// wait returns after the next change, or d, or ctx. What a full buffer has lost is
// as good as a change.
func (n *addrNews) wait(ctx context.Context, d time.Duration) {
	stop := context.AfterFunc(ctx, func() { n.sock.SetReadDeadline(time.Now()) })
	defer stop()
	n.sock.SetReadDeadline(time.Now().Add(d))
	if ctx.Err() == nil {
		_, _ = n.sock.Read(make([]byte, 1<<14))
	}
}

func (n *addrNews) close() { n.sock.Close() }
