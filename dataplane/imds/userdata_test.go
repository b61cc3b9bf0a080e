package imds_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"strings"
	"testing"

	"replug/dataplane/imds"
	"replug/directory/vnet"
)

// TestUserData: what the owner hands over stays as it is; what the document says
// beside it comes after, as cloud-config that gives way.
func TestUserData(t *testing.T) {
	doc := &vnet.Document{Woken: &vnet.Woken{Seed: []byte{0x1d, 0x2e, 0x3f}}, User: "ann", TimeZone: "Europe/Berlin", PasswordHash: "$6$salt$hash",
		Files:   []vnet.File{{Path: "/etc/motd", Content: "hello"}, {Path: "/etc/secret", Mode: 0o600}},
		RunOnce: []vnet.Command{{ID: "one", Command: "touch /ran"}}}
	const inner = "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"b\"\n\n--b\nContent-Type: text/x-shellscript\n\n#!/bin/sh\n\n--b--\n"
	for name, c := range map[string]struct {
		own  string
		kind string // of the owner's part; "": there is none
		body string
	}{
		"nothing":      {"", "", ""},
		"a script":     {"#!/bin/sh\ntrue\n", "text/plain", "#!/bin/sh\ntrue\n"},
		"cloud-config": {"#cloud-config\nusers: []\n\npackages: [x]\n", "text/plain", "#cloud-config\nusers: []\n\npackages: [x]\n"},
		"compressed":   {"\x1f\x8b\x08\x00", "application/gzip", "\x1f\x8b\x08\x00"},
		"MIME":         {inner, "multipart/mixed", "--b\nContent-Type: text/x-shellscript\n\n#!/bin/sh\n\n--b--\n"},
	} {
		t.Run(name, func(t *testing.T) {
			d := *doc
			d.UserData = []byte(c.own)
			parts := split(t, imds.UserData(&d))
			if c.kind != "" {
				if parts[0].kind != c.kind || parts[0].body != c.body {
					t.Errorf("the owner's part is %+v", parts[0])
				}
				parts = parts[1:]
			}
			if len(parts) != 2 || parts[0].kind != "text/cloud-config" || parts[1].kind != "text/cloud-config" {
				t.Fatalf("parts %+v", parts)
			}
			checkConfig(t, parts[0].body)
			checkWake(t, parts[1].body)
		})
	}
	d := *doc
	d.Woken, d.UserData = nil, nil
	checkConfig(t, string(imds.UserData(&d)))
	if got := imds.UserData(&vnet.Document{UserData: []byte("#!x")}); string(got) != "#!x" {
		t.Errorf("with nothing beside it: %q", got)
	}
	if got := imds.UserData(&vnet.Document{}); len(got) != 0 {
		t.Errorf("nothing at all became %q", got)
	}
}

type mimePart struct{ kind, body string }

func split(t *testing.T, data []byte) (parts []mimePart) {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	for r := multipart.NewReader(m.Body, params["boundary"]); ; {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return parts
		}
		if err != nil {
			t.Fatal(err)
		}
		kind, _, _ := mime.ParseMediaType(p.Header.Get("Content-Type"))
		body, _ := io.ReadAll(p)
		if p.Header.Get("Content-Transfer-Encoding") == "base64" {
			if body, err = base64.StdEncoding.DecodeString(string(body)); err != nil {
				t.Fatal(err)
			}
		}
		parts = append(parts, mimePart{kind, string(body)})
	}
}

func checkConfig(t *testing.T, config string) {
	t.Helper()
	text, ok := strings.CutPrefix(config, "#cloud-config\n")
	var c struct {
		User     struct{ Name string }
		Timezone string
		Chpasswd struct {
			Users []struct{ Name, Password, Type string }
		}
		WriteFiles []struct{ Path, Permissions, Encoding, Content string } `json:"write_files"`
		Runcmd     []string
		MergeHow   string `json:"merge_how"`
	}
	if err := json.Unmarshal([]byte(text), &c); err != nil || !ok {
		t.Fatalf("%q: %v", config, err)
	}
	switch {
	case c.User.Name != "ann" || c.Timezone != "Europe/Berlin" || len(c.Chpasswd.Users) != 1 || c.Chpasswd.Users[0].Type != "hash":
		t.Errorf("user: %s", text)
	case len(c.WriteFiles) != 2 || c.WriteFiles[0].Permissions != "0644" || c.WriteFiles[0].Content != "aGVsbG8=" || c.WriteFiles[1].Permissions != "0600":
		t.Errorf("files: %s", text)
	case len(c.Runcmd) != 1 || c.MergeHow != "dict(recurse_array,no_replace)+list(append)+str()":
		t.Errorf("commands: %s", text)
	}
}

// checkWake looks whether a guest that slept is told so before its owner's commands.
func checkWake(t *testing.T, config string) {
	t.Helper()
	var c struct {
		Bootcmd  [][]string
		MergeHow string `json:"merge_how"`
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(config, "#cloud-config\n")), &c); err != nil || len(c.Bootcmd) != 1 || len(c.Bootcmd[0]) != 3 {
		t.Fatalf("%q: %v", config, err)
	}
	script := c.Bootcmd[0][2]
	if !strings.HasPrefix(script, "echo HS4/ | base64 -d >/dev/urandom\n") || !strings.Contains(script, "0x5207") ||
		!strings.HasSuffix(script, `"$(date +%s)" ] && date -s "@$now"; true`) || c.MergeHow != "dict(recurse_array,no_replace)+list(prepend)+str()" {
		t.Errorf("after its sleep: %s", config)
	}
}
