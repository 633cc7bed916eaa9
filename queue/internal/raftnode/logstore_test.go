package raftnode

import (
	"testing"

	"github.com/hashicorp/raft"
)

func TestEveryAppendIsCounted(t *testing.T) {
	t.Parallel()
	n := &Node{counted: &countedLog{LogStore: raft.NewInmemStore(), fsyncs: 2}}
	if err := n.counted.StoreLogs([]*raft.Log{{Index: 1, Data: []byte("abc")}, {Index: 2, Data: []byte("de")}}); err != nil {
		t.Fatal(err)
	}
	if err := n.counted.StoreLog(&raft.Log{Index: 3, Data: []byte("f")}); err != nil {
		t.Fatal(err)
	}
	s := n.LogStats()
	if s.Appends != 2 || s.Fsyncs != 4 || s.Entries != 3 || s.Bytes != 6 || s.Spent <= 0 {
		t.Errorf("stats %+v", s)
	}
}
