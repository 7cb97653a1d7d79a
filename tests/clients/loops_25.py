# In the manner of 2.5: everything is a method assigned from outside; mUNet; losses kept and plotted
import random, numpy, torch, os, sys, copy, time
seed = 0
random.seed(seed); torch.manual_seed(seed); numpy.random.seed(seed)
from SegStudio import *
import torch.nn as nn, torch.optim as optim, torchvision
import matplotlib.pyplot as plt

def training(self, net, display_train_loss=True):
    net = copy.deepcopy(net)
    net = net.to(self.dl_studio.device)
    criterion1 = nn.MSELoss()
    optimizer = optim.SGD(net.parameters(), lr=self.dl_studio.learning_rate, momentum=self.dl_studio.momentum)
    start_time = time.perf_counter()
    training_loss_tally = []
    for epoch in range(self.dl_studio.epochs):
        print("")
        running = 0.0
        for i, data in enumerate(self.train_dataloader):
            im_tensor, mask_tensor, bbox_tensor = data['image'], data['mask_tensor'], data['bbox_tensor']
            im_tensor = im_tensor.to(self.dl_studio.device)
            mask_tensor = mask_tensor.type(torch.FloatTensor).to(self.dl_studio.device)
            optimizer.zero_grad()
            output = net(im_tensor)
            loss = criterion1(output, mask_tensor)
            loss.backward()
            optimizer.step()
            running += loss.item()
            training_loss_tally.append(loss.item())
    print("\nFinished Training\n")
    self.save_model(net)
    if display_train_loss:
        plt.figure(figsize=(10, 5))
        plt.title("Training loss vs. Iterations")
        plt.plot(training_loss_tally)
        plt.xlabel("iterations"); plt.ylabel("training loss")
        plt.savefig("training_loss.png")
        plt.show()

def testing(self, net):
    net.load_state_dict(torch.load(self.dl_studio.path_saved_model, weights_only=True))
    net.to(self.dl_studio.device)
    B, S = self.dl_studio.batch_size, self.dl_studio.image_size
    with torch.no_grad():
        for i, data in enumerate(self.test_dataloader):
            im_tensor, mask_tensor, bbox_tensor = data['image'], data['mask_tensor'], data['bbox_tensor']
            if i % 50 == 0:
                outputs = net(im_tensor.to(self.dl_studio.device)).cpu()
                bw = torch.amax(outputs, dim=1, keepdim=True).double()
                display_tensor = torch.zeros(7 * B, 3, S[0], S[1], dtype=float)
                display_tensor[:B] = bw
                display_tensor[B:2 * B] = im_tensor
                for k in range(5):
                    display_tensor[(2 + k) * B:(3 + k) * B] = torch.where(outputs[:, k:k + 1] > 25, 255., 50.)
                self.dl_studio.display_tensor_as_image(torchvision.utils.make_grid(display_tensor, nrow=B, normalize=True, padding=2, pad_value=10))

SegStudio.SemanticSegmentation.run_code_for_training_for_semantic_segmentation = training
SegStudio.SemanticSegmentation.run_code_for_testing_semantic_segmentation = testing

dls = SegStudio(dataroot="./data/PurdueShapes5MultiObject/", image_size=[64, 64], path_saved_model="./saved_model",
                momentum=0.9, learning_rate=1e-4, epochs=2, batch_size=4,
                classes=('rectangle', 'triangle', 'disk', 'oval', 'star'), use_gpu=True)
segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
ds = [SegStudio.SemanticSegmentation.PurdueShapes5MultiObjectDataset(train_or_test=w, dl_studio=dls, segmenter=segmenter,
      dataset_file="PurdueShapes5MultiObject-20-%s.gz" % w) for w in ('train', 'test')]
segmenter.dataserver_train, segmenter.dataserver_test = ds
segmenter.load_PurdueShapes5MultiObject_dataset(*ds)
model = segmenter.mUNet(skip_connections=True, depth=4)
segmenter.run_code_for_training_for_semantic_segmentation(model)
segmenter.run_code_for_testing_semantic_segmentation(model)
print("all done")
