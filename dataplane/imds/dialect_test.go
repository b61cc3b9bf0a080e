package imds_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"replug/dataplane/imds"
	"replug/directory/vnet"
)

// A question is one that a guest may ask in some dialect.
type question struct {
	name, method, path, body string
	personality              vnet.Personality
	edit                     func(*http.Request)
}

const ttlHeader, tokenHeader = "X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token"

// questions is one of each kind that has something of the document in its answer.
func questions(token string) []question {
	bare := func(r *http.Request) { r.Header.Del("Metadata") }
	ec2 := func(r *http.Request) { bare(r); r.Header.Set(tokenHeader, token) }
	none := func(*http.Request) {}
	return []question{
		{"ours", "GET", imds.PathConfig, "", "", none},
		{"azure instance", "GET", instancePath, "", "", none},
		{"azure reprovision", "GET", reprovisionPath, "", "", none},
		{"wire server", "GET", "/machine/?comp=goalstate", "", "", wire},
		{"ec2 meta-data", "GET", "/2018-09-24/meta-data/hostname", "", "", ec2},
		{"ec2 user-data", "GET", "/latest/user-data", "", "", ec2},
		{"openstack", "GET", "/openstack/latest/meta_data.json", "", vnet.PersonalityOpenStack, bare},
		{"openstack vendor data", "GET", "/openstack/latest/vendor_data.json", "", vnet.PersonalityOpenStack, bare},
		{"openstack user data", "GET", "/openstack/2016-06-30/user_data", "", vnet.PersonalityOpenStack, bare},
		{"nocloud", "GET", "/nocloud/meta-data", "", vnet.PersonalityNoCloud, bare},
		{"nocloud user data", "GET", "/nocloud/user-data", "", vnet.PersonalityNoCloud, bare},
	}
}

func (s *service) put(t *testing.T, c *http.Client, query question) (int, string) {
	t.Helper()
	code, body, err := s.ask(c, query.method, query.path, query.body, query.edit)
	if err != nil {
		t.Fatalf("%s: %v", query.name, err)
	}
	return code, body
}

// session takes a session token.
func (s *service) session(t *testing.T, c *http.Client, seconds string) (int, string) {
	t.Helper()
	return s.put(t, c, question{"token", "PUT", tokenPath, "", "", lasts(seconds)})
}

const tokenPath = "/latest/api/token"

// lasts asks for a session token of so many seconds.
func lasts(seconds string) func(*http.Request) {
	return func(r *http.Request) {
		r.Header.Del("Metadata")
		r.Header.Set(ttlHeader, seconds)
	}
}

// secretDoc has a word in every place that a dialect serves.
func secretDoc(word string) *vnet.Document {
	return &vnet.Document{Instance: "vm-" + word, Hostname: "host-" + word, User: "ann", SSHKeys: []string{"ssh-ed25519 " + word},
		TimeZone: "Zone/" + word, UserData: []byte("#!/bin/sh\n# " + word + "\n")}
}

// TestDialects asks every question as it should be asked, and then with each fault
// that makes it somebody else's: forwarded, for a foreign host, without its key.
func TestDialects(t *testing.T) {
	s := serve(t)
	c := guest(t, 23, before)
	_, token := s.session(t, c, "60")
	for _, q := range questions(token) {
		t.Run(q.name, func(t *testing.T) {
			s.Forget(23) // a full bucket of requests
			s.Publish(23, before, secretDoc("gold"), imds.Guest{Personality: q.personality, MAC: guest17.MAC, Addrs: guest17.Addrs})
			if code, body := s.put(t, c, q); code != 200 || !strings.Contains(body, "gold") && q.name != "azure reprovision" && q.name != "ec2 user-data" {
				t.Fatalf("good: %d %s", code, body)
			}
			for fault, edit := range map[string]func(*http.Request){
				"forwarded request": func(r *http.Request) { r.Header.Set("X-Forwarded-For", "10.9.8.7") },
				"foreign host":      func(r *http.Request) { r.Host = "metadata.evil.example" },
			} {
				bad, had := q, s.count("23: "+fault)
				bad.edit = func(r *http.Request) { q.edit(r); edit(r) }
				if code, body := s.put(t, c, bad); code != 400 || strings.Contains(body, "gold") || s.count("23: "+fault) != had+1 {
					t.Errorf("%s: %d %s, counted %d", fault, code, body, s.count("23: "+fault))
				}
			}
			keyless := q
			keyless.edit = func(r *http.Request) {
				q.edit(r)
				r.Header.Del("Metadata")
				r.Header.Del("x-ms-version")
				r.Header.Del(tokenHeader)
			}
			if q.personality != "" { // no header, no token: only the image opens these
				s.Publish(23, before, secretDoc("gold"), imds.Guest{Personality: vnet.PersonalityCloudInit})
			}
			if code, body := s.put(t, c, keyless); code < 400 || strings.Contains(body, "gold") {
				t.Errorf("without its key: %d %s", code, body)
			}
		})
	}
}

// TestOwnDialectBesideCloudInit: what cloud-init applies is not told to an agent
// beside it; where it is alone it is told all.
func TestOwnDialectBesideCloudInit(t *testing.T) {
	s := serve(t)
	c := guest(t, 23, before)
	d := secretDoc("gold")
	d.DNS, d.Disks, d.RunOnce = []netip.Addr{netip.MustParseAddr("9.9.9.9")}, []vnet.DataDisk{{ID: "1", Path: "/srv"}}, []vnet.Command{{ID: "one", Command: "gold"}}
	for p, alone := range map[vnet.Personality]bool{vnet.PersonalityAgent: true, "": true, vnet.PersonalityPlain: true, vnet.PersonalityCloudInit: false,
		vnet.PersonalityCloudInitSavable: false, vnet.PersonalityEC2: false, vnet.PersonalityOpenStack: false, vnet.PersonalityNoCloud: false} {
		s.Publish(23, before, d, imds.Guest{Personality: p})
		code, body := s.put(t, c, question{method: "GET", path: imds.PathConfig, edit: func(*http.Request) {}})
		if told := strings.Count(body, "gold"); code != 200 || alone && told != 5 || !alone && told != 1 || !strings.Contains(body, "9.9.9.9") || !strings.Contains(body, "/srv") {
			t.Errorf("%q: %d %s", p, code, body)
		}
	}
}

// TestTokens: a session token is good for its caller, in its epoch, for its time.
func TestTokens(t *testing.T) {
	s := serve(t)
	for port := range vnet.PortID(2) {
		s.Publish(23+port, before, secretDoc("gold"), imds.Guest{})
	}
	for seconds, want := range map[string]int{"0": 400, "21601": 400, "": 400, "x": 400, "21600": 200} {
		if code, _ := s.session(t, guest(t, 23, before), seconds); code != want {
			t.Errorf("a token for %q seconds: %d, want %d", seconds, code, want)
		}
	}
	_, token := s.session(t, guest(t, 23, before), "60")
	leaf := func(token string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(tokenHeader, token) }
	}
	const path = "/latest/meta-data/hostname"
	s.is(t, guest(t, 23, before), path, 200, leaf(token))
	s.is(t, guest(t, 24, before), path, 401, leaf(token))
	s.is(t, guest(t, 23, before), path, 401, leaf(""))
	s.is(t, guest(t, 23, before), path, 401, leaf(token[:len(token)-2]+"xx"))
	s.Publish(23, after, secretDoc("next"), imds.Guest{})
	s.is(t, guest(t, 23, after), path, 401, leaf(token))
}

// TestEC2Tree walks the tree as cloud-init does: a name with a slash is a list.
func TestEC2Tree(t *testing.T) {
	s := serve(t)
	c := guest(t, 23, before)
	s.Publish(23, before, secretDoc("gold"), guest17)
	_, token := s.session(t, c, "60")
	got := map[string]string{}
	var walk func(string)
	walk = func(dir string) {
		list := s.is(t, c, "/2018-09-24/"+dir, 200, func(r *http.Request) { r.Header.Set(tokenHeader, token) })
		for name := range strings.SplitSeq(list, "\n") {
			number, _, key := strings.Cut(name, "=")
			switch {
			case key:
				got[dir+name] = s.is(t, c, "/2018-09-24/"+dir+number+"/openssh-key", 200, func(r *http.Request) { r.Header.Set(tokenHeader, token) })
			case strings.HasSuffix(name, "/"):
				walk(dir + name)
			default:
				got[dir+name] = s.is(t, c, "/2018-09-24/"+dir+name, 200, func(r *http.Request) { r.Header.Set(tokenHeader, token) })
			}
		}
	}
	walk("meta-data/")
	walk("dynamic/")
	if id := s.is(t, c, "/2021-03-23/dynamic/instance-identity", 200, func(r *http.Request) { r.Header.Set(tokenHeader, token) }); id != "document" {
		t.Errorf("cloud-init's list of the identity: %q", id)
	}
	nic := "network/interfaces/macs/02:6c:1d:2e:3f:47/"
	for path, want := range map[string]string{
		"instance-id": "vm-gold", "local-hostname": "host-gold", "public-keys/0=key-0": "ssh-ed25519 gold", "local-ipv4": "10.17.34.62",
		nic + "subnet-ipv4-cidr-block": "10.17.34.0/23", nic + "ipv6s": "fd17:34::62", nic + "device-number": "0",
	} {
		if got["meta-data/"+path] != want {
			t.Errorf("%s: %q, want %q", path, got["meta-data/"+path], want)
		}
	}
	if id := got["dynamic/instance-identity/document"]; !strings.Contains(id, `"instanceId":"vm-gold"`) || !strings.Contains(id, `"privateIp":"10.17.34.62"`) {
		t.Errorf("identity: %s", id)
	}
}

// TestOpenStack reads what cloud-init reads there.
func TestOpenStack(t *testing.T) {
	s := serve(t)
	c := guest(t, 23, before)
	g := guest17
	g.Personality = vnet.PersonalityOpenStack
	s.Publish(23, before, secretDoc("gold"), g)
	if body := s.is(t, c, "/openstack", 200); !strings.HasSuffix(body, "\nlatest") {
		t.Errorf("versions: %q", body)
	}
	for path, want := range map[string]string{
		"meta_data.json": `{"availability_zone":"replug","hostname":"host-gold","launch_index":0,"meta":{},"name":"vm-gold",` +
			`"public_keys":{"key-0":"ssh-ed25519 gold"},"uuid":"5f7c1a2e-3b4d-4c6f-8a9b-2c3d4e5f6a7b"}` + "\n",
		"network_data.json": `{"links":[{"ethernet_mac_address":"02:6c:1d:2e:3f:47","id":"nic0","type":"phy"}],"networks":[` +
			`{"id":"network0","link":"nic0","network_id":"replug","type":"ipv4_dhcp"},{"id":"network1","link":"nic0","network_id":"replug","type":"ipv6_dhcpv6-stateful"}],"services":[]}` + "\n",
		"user_data": "#!/bin/sh\n# gold\n",
	} {
		if body := s.is(t, c, "/openstack/latest/"+path, 200); body != want {
			t.Errorf("%s: %s, want %s", path, body, want)
		}
	}
	var vendor map[string]string
	if err := json.Unmarshal([]byte(s.is(t, c, "/openstack/latest/vendor_data.json", 200)), &vendor); err != nil || !strings.Contains(vendor["cloud-init"], `"timezone":"Zone/gold"`) {
		t.Errorf("vendor data %v, %v", vendor, err)
	}
	s.is(t, c, "/openstack/1999-01-01/meta_data.json", 404)
}

// TestNoRedirects: whatever the path, nobody is sent elsewhere.
func TestNoRedirects(t *testing.T) {
	s := serve(t)
	c := guest(t, 23, before)
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	s.Publish(23, before, secretDoc("gold"), guest17)
	for _, path := range []string{"/", "//", "/replug", "/replug/v1", "/metadata", "/metadata/instance/", "//metadata/instance", "/metadata/../replug/v1/config",
		"/latest", "/latest/", "/openstack/", "/nocloud", "/machine//?comp=goalstate", "/%2e%2e/latest"} {
		if code, _ := s.get(t, c, path); code >= 300 && code < 400 {
			t.Errorf("%s: %d", path, code)
		}
	}
}

// TestSecretsDuringSwaps flips one port back and forth while callers of both of its
// epochs and of another port ask everything: nobody ever reads what isn't his.
func TestSecretsDuringSwaps(t *testing.T) {
	s := serve(t)
	s.Unlimited()
	stop, read := make(chan struct{}), make(map[string]map[string]bool) // by whom, by which ways
	var all sync.WaitGroup
	ask := func(port vnet.PortID, epoch vnet.Epoch, own string) {
		c, whom := client(t, fmt.Sprintf("127.%d.%d.9", port, epoch.Counter())), fmt.Sprintf("%d at %s", port, epoch)
		for {
			_, token, _ := s.ask(c, "PUT", tokenPath, "", lasts("60")) // refused while it has no document
			for _, q := range questions(token) {
				select {
				case <-stop:
					return
				default:
				}
				_, body, err := s.ask(c, q.method, q.path, "", q.edit)
				for _, word := range []string{"copper", "silver", "gold"} {
					if err == nil && word != own && strings.Contains(body, word) {
						t.Errorf("port %d of epoch %s read %s's at %s: %s", port, epoch, word, q.path, body)
					}
				}
				if err == nil && strings.Contains(body, own) {
					s.mu.Lock()
					if read[whom] == nil {
						read[whom] = map[string]bool{}
					}
					read[whom][q.name] = true
					s.mu.Unlock()
				}
			}
		}
	}
	s.Publish(42, before, secretDoc("gold"), imds.Guest{Personality: vnet.PersonalityNoCloud})
	epochs := []vnet.Epoch{vnet.NewEpoch(3, 7), vnet.NewEpoch(3, 8), vnet.NewEpoch(3, 9), vnet.NewEpoch(3, 10)}
	for i, e := range epochs {
		own := []string{"copper", "silver"}[i%2]
		all.Go(func() { ask(23, e, own) })
	}
	all.Go(func() { ask(42, before, "gold") })
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for i, e := range epochs {
		s.Withdraw(23)
		<-tick.C
		s.Publish(23, e, secretDoc([]string{"copper", "silver"}[i%2]), imds.Guest{Personality: vnet.PersonalityOpenStack})
		s.is(t, guest(t, 23, e), imds.PathConfig, 200)
		for own := fmt.Sprintf("23 at %s", e); ; {
			s.mu.Lock()
			ways := read[own]
			all := ways["ours"] && ways["azure instance"] && ways["ec2 meta-data"] && ways["openstack"] && ways["openstack user data"]
			s.mu.Unlock()
			if all || t.Context().Err() != nil {
				break
			}
			<-tick.C
		}
	}
	close(stop)
	all.Wait()
	if len(read) != 5 {
		t.Errorf("not everybody could read his own: %v", read)
	}
}
