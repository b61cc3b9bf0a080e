package imds

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"replug/directory/vnet"
)

// The EC2 dialect, in its second form: a session token is taken by PUT, and each
// question needs it. cloud-init reads the whole tree of meta-data, and the user data.
var ec2Roots = []string{"/latest", "/2009-04-04", "/2016-09-02", "/2018-09-24", "/2021-03-23"}

const (
	pathToken   = "/latest/api/token"
	ttlHeader   = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	tokenHeader = "X-Aws-Ec2-Metadata-Token"
	longestTTL  = 6 * 60 * 60 // seconds
)

// ec2Token wants the session token of every request but that for one.
func (s *Server) ec2Token(r *http.Request, who Caller) *refusal {
	if r.URL.Path == pathToken {
		return nil
	}
	if !s.tokens.good(who, r.Header.Get(tokenHeader), time.Now()) {
		return &refusal{http.StatusUnauthorized, "no session token", "take one by PUT " + pathToken, false}
	}
	return nil
}

// ec2 answers in the EC2 dialect.
func (s *Server) ec2(w http.ResponseWriter, r *http.Request, who Caller) *refusal {
	if r.URL.Path == pathToken {
		return s.giveToken(w, r, who)
	}
	if no := only(r, http.MethodGet); no != nil {
		return no
	}
	pub, no := s.current(who)
	if no != nil {
		return no
	}
	_, path, _ := strings.Cut(r.URL.Path[1:], "/")
	switch path {
	case "", "/":
		return text(w, "text/plain", "dynamic\nmeta-data\nuser-data\n")
	case "user-data":
		data := joined(pub.doc.UserData, cloudConfig(pub.doc, true))
		if len(data) == 0 {
			return &refusal{http.StatusNotFound, "no user data", "give the VM some", false}
		}
		return text(w, "application/octet-stream", string(data))
	}
	root, leaf, _ := strings.Cut(path, "/")
	switch root {
	case "meta-data":
		return browse(w, ec2Tree(pub.doc, &pub.guest), leaf)
	case "dynamic":
		return browse(w, ec2Dynamic(pub.doc, &pub.guest), leaf)
	}
	return &unknownPath
}

// ec2Dynamic is what EC2 signs. cloud-init reads its lists too, and asks for minutes
// when there are none.
func ec2Dynamic(d *vnet.Document, g *Guest) map[string]string {
	document, _ := json.Marshal(map[string]string{"instanceId": d.Instance, "privateIp": first(g), "architecture": "x86_64",
		"region": "replug", "availabilityZone": "replug", "version": "2017-09-30"}) // strings only: no error
	return map[string]string{"instance-identity/document": string(document)}
}

func (s *Server) giveToken(w http.ResponseWriter, r *http.Request, who Caller) *refusal {
	if no := only(r, http.MethodPut); no != nil {
		return no
	}
	ttl, err := strconv.Atoi(r.Header.Get(ttlHeader))
	if err != nil || ttl < 1 || ttl > longestTTL {
		return &refusal{http.StatusBadRequest, "bad token time", fmt.Sprintf("send %s: 1 to %d", ttlHeader, longestTTL), false}
	}
	w.Header().Set(ttlHeader, strconv.Itoa(ttl))
	return text(w, "text/plain", s.tokens.give(who, time.Now().Add(time.Duration(ttl)*time.Second)))
}

// ec2Tree is the meta-data: texts by their paths.
func ec2Tree(d *vnet.Document, g *Guest) map[string]string {
	tree := map[string]string{
		"ami-id": "ami-replug", "instance-id": d.Instance, "instance-type": "replug", "hostname": d.Hostname,
		"local-hostname": d.Hostname, "local-ipv4": first(g), "mac": g.MAC.String(), "placement/availability-zone": "replug",
	}
	nic := "network/interfaces/macs/" + g.MAC.String() + "/"
	tree[nic+"device-number"], tree[nic+"mac"], tree[nic+"interface-id"] = "0", g.MAC.String(), "eni-0"
	var v4, v6 []string
	for _, a := range g.Addrs {
		if a.CA.Is6() {
			v6 = append(v6, a.CA.String())
			continue
		}
		if v4 = append(v4, a.CA.String()); len(v4) == 1 {
			tree[nic+"subnet-ipv4-cidr-block"] = a.Prefix().String()
		}
	}
	if v4 != nil {
		tree[nic+"local-ipv4s"] = strings.Join(v4, "\n")
	}
	if v6 != nil {
		tree[nic+"ipv6s"] = strings.Join(v6, "\n")
	}
	for i, k := range d.SSHKeys {
		tree[fmt.Sprintf("public-keys/%d/openssh-key", i)] = k
	}
	return tree
}

// browse answers with a text of the tree, or with the list of what is below: a
// name with a slash has more below it, and keys have a name beside their number.
func browse(w http.ResponseWriter, tree map[string]string, path string) *refusal {
	if leaf, ok := tree[path]; ok {
		return text(w, "text/plain", leaf)
	}
	dir := strings.TrimSuffix(path, "/")
	if dir != "" {
		dir += "/"
	}
	var names []string
	for at := range tree {
		rest, ok := strings.CutPrefix(at, dir)
		if !ok {
			continue
		}
		name, _, more := strings.Cut(rest, "/")
		switch {
		case dir == "public-keys/":
			name += "=key-" + name
		case more:
			name += "/"
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if names == nil {
		return &unknownPath
	}
	slices.Sort(names)
	return text(w, "text/plain", strings.Join(names, "\n"))
}

// first is the guest's first IPv4 address, or "".
func first(g *Guest) string {
	for _, a := range g.Addrs {
		if a.CA.Is4() {
			return a.CA.String()
		}
	}
	return ""
}
