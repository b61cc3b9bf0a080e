package guest

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
)

// A resolvConf is the file that says whom to ask for names, as our own client keeps it:
// the document's servers, and after them those of both families' leases.
type resolvConf struct {
	machine
	log logger

	mu        sync.Mutex // the families come as they like
	four, six []netip.Addr
	domain    string
}

const (
	resolvFile = "etc/resolv.conf"
	resolvMark = "# by replug-guest\n" // a file with it is written also if there is no server any more
)

// forget is for a link that has just come up: what was said on it before may have been
// another network's. The file stays until there is a lease.
func (r *resolvConf) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.four, r.six, r.domain = nil, nil, ""
}

// set4 takes what a lease says.
func (r *resolvConf) set4(l *lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.four, r.domain = l.dns, l.domain
	r.write()
}

// set6 takes what a router and its DHCPv6 say.
func (r *resolvConf) set6(servers []netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.six = servers
	r.write()
}

// write brings the file up to date; one that others made stays if we know no server.
func (r *resolvConf) write() {
	var all []netip.Addr
	for _, a := range slices.Concat(r.servers(), r.four, r.six) {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	was, _ := os.ReadFile(r.path(resolvFile)) // none: not ours
	if len(all) == 0 && !strings.Contains(string(was), resolvMark) {
		return
	}
	text := resolvMark
	if isName(r.domain) {
		text += fmt.Sprintf("search %s\n", r.domain)
	}
	for _, a := range all {
		text += fmt.Sprintf("nameserver %s\n", a)
	}
	if err := r.put(resolvFile, []byte(text), false, func(file string) error { return os.Chmod(file, 0o644) }); err != nil {
		r.log.say("name servers not set: %v", err)
	}
}
